"""How the report's and the orchestrator's plots are drawn."""

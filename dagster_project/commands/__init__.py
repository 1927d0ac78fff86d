"""What `ambient-omni` does, one module per command."""

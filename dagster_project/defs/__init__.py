"""Assets, checks and resources, one module per group."""

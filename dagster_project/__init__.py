"""The orchestrated graph and the `ambient-omni` command. Describes; computes nothing."""

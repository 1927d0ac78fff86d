"""What happens by itself over weeks: drops, drift, promotion, launches, notices. No orchestrator.

Everything here is plain functions over a root; `defs/` hangs them on sensors, schedules and jobs.
"""

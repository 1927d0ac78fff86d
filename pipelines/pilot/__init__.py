"""Pilot trainings: which classifier evidence lowers held-out loss, measured and not assumed."""

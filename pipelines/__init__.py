"""From sources to measured, deduplicated, annotated tables."""

# Spark's workers enter here: torchvision has to be importable for whatever they load.
import ambient_omni  # noqa: F401

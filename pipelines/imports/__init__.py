"""Import: what others measured or decided, matched to the samples of a batch and versioned."""

from pipelines.imports.embeddings import import_embeddings
from pipelines.imports.levels import import_levels
from pipelines.imports.scores import ImportedFile, import_scores

__all__ = ["ImportedFile", "import_embeddings", "import_levels", "import_scores"]

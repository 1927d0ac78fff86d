"""Errors that a caller can handle. Each message says what is wrong, which item, and what to do."""


class AmbientOmniError(Exception):
    """Base of every error that is meant for the person at the keyboard; one line of text."""

    exit_code = 2


class BadInput(AmbientOmniError):
    """What the user pointed at cannot be used: an empty folder, an unknown format, a bad option."""


class ContractViolation(AmbientOmniError):
    """Rows do not fulfil their table's contract; the message names the column and the rows."""


class TableMissing(AmbientOmniError):
    """A table, a version or a slice is needed and not there."""


class TableDamaged(AmbientOmniError):
    """Files of a table are gone, cut or half written; the message names them."""


class AnnotationMissing(AmbientOmniError):
    """A sample has no annotation. Absence is never read as clean."""


class NotEnoughReferences(AmbientOmniError):
    """The reference set is too small for what is asked of it."""


class JobAlreadyRunning(AmbientOmniError):
    """The same job already works on the same batch."""


class RootVersionMismatch(AmbientOmniError):
    """The root was written under another schema version."""


class IngestIncomplete(AmbientOmniError):
    """Some listed items ended without a status, or nothing at all could be stored."""


class ClassifierRefused(AmbientOmniError):
    """A noise classifier failed its positive control, or does not fit the data at hand."""


class CheckpointRefused(AmbientOmniError):
    """A checkpoint is truncated, altered, or was made for another noise space or network."""


class TrainingFailed(AmbientOmniError):
    """Training cannot go on, for example because the loss is not finite."""


class CommitConflict(AmbientOmniError):
    """Others kept changing a table while a commit was tried; nothing was written."""

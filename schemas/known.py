"""Names that a person gave: what there is, where one is of nothing."""

import difflib
from collections.abc import Iterable, Sequence

from schemas.errors import BadInput
from schemas.reference_sets import EVALUATION, TRUSTED, VALIDATION
from schemas.tables import Tables

_MOST_LISTED = 40


def instead_of(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: what was meant, or what there is."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    if not names:
        return "; there are none yet"
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"; there are {', '.join(names[:_MOST_LISTED])}{more}"


def require_batches(tables: Tables, batches: Sequence[str]) -> None:
    """Refuse names of no ingest batch.

    Raises:
        BadInput: one is of none; the message says which there are.
    """
    known = tables.read("ingest_batches", ["ingest_batch"])["ingest_batch"].to_pylist()
    for batch in batches:
        if batch not in known:
            raise BadInput(f"there is no batch {batch!r}{instead_of(batch, known)}")


def require_reference_set(tables: Tables, reference_set: str) -> None:
    """Refuse a name of no reference set.

    Raises:
        BadInput: it is of none; the message says which there are.
    """
    known = set(tables.read("reference_sets", ["reference_set"])["reference_set"].to_pylist())
    known |= {TRUSTED, VALIDATION, EVALUATION}  # one of these may be empty, and is no mistake
    if reference_set not in known:
        raise BadInput(
            f"there is no reference set {reference_set!r}{instead_of(reference_set, sorted(known))}"
        )

"""Bringing one batch in: asked for once, then walked to its levels."""

from collections.abc import Mapping
from typing import Any

from dagster_project.operations.classifiers import promoted_id
from dagster_project.operations.config import Role
from dagster_project.request import BatchRequest, Request, absolute_source, change_request
from dagster_project.steps import Step, steps_until
from schemas.errors import BadInput
from schemas.reference_sets import TRUSTED
from schemas.root import Root

PER_SOURCE = "classifier_per_source"
FOLLOWING = {"annotate": "annotate", "score": "score", "ingest": "ingest", "nothing": ""}


def register_batch(
    root: Root,
    name: str,
    source: str,
    role: Role = "pool",
    ingest: Mapping[str, Any] | None = None,
) -> BatchRequest:
    """Ask for a batch in the root's request; the same again changes nothing.

    Raises:
        BadInput: the source is not there or empty, the name is taken by another source, a setting
            is unknown, or nothing was asked of the root yet.
    """
    from pipelines.ingest.register import check_batch
    from pipelines.ingest.source import open_source

    check_batch(root, name, role)
    request = Request.load(root)
    known = {batch.name: batch for batch in request.batches} if request else {}
    if name in known and not source:
        return known[name]
    if not source:
        raise BadInput(f"batch {name!r} is new; name its source")
    new = BatchRequest(
        name=name,
        role=role,
        source=absolute_source(source),
        ingest=dict(ingest or {}),
        stream=known[name].stream if name in known else "",
    )
    changed = change_request(root, lambda request: request.with_batches([new]))
    if name not in known:
        try:
            open_source(new.source, changed.ingest_of(name))
        except BadInput:
            # What could not be used must not stand in the way of a better source.
            change_request(root, lambda request: without(request, name))
            raise
    return changed.batch(name)


def without(request: Request, batch: str) -> Request:
    """Return a request that does not ask for a batch."""
    kept = tuple(b for b in request.batches if b.name != batch)
    return request.model_copy(update={"batches": kept})


def chain_of(root: Root, request: Request, batch: str, until: str) -> list[tuple[Step, str | None]]:
    """Return the steps that bring one batch to `until`.

    With a promoted classifier, or an arm that needs none, they are about this batch alone, but for
    the reference sets when it is one of theirs, and but for the levels of all where they go by
    source: a new source is a new policy. Without one the classifier is the whole pool's: a
    new batch changes it, and with it the levels of all.
    """
    steps, role = steps_until(until), request.batch(batch).role
    defined = root.tables.read(
        "reference_sets", ["sample_row"], {"reference_set": TRUSTED}
    ).num_rows
    alone = promoted_id(root, request.full_recipe.noise_space) is not None
    if not alone and until == "annotate":
        return [(step, partition) for step in steps for partition in step.partitions(request, ())]
    work: list[tuple[Step, str | None]] = []
    for step in steps:
        if step.only_for is not None and not request.has_rule(step.only_for):
            continue
        if step.name == "annotate" and role in step.roles and request.has_rule(PER_SOURCE):
            # A new source makes a new policy, which all batches fall under: this one at the end.
            others = [name for name in step.partitions(request, ()) if name != batch]
            work += [(step, name) for name in (*others, batch)]
        elif step.roles and role in step.roles:
            work.append((step, batch))
        elif step.only_for is not None and not step.roles and role == "pool":
            work.append((step, None))  # kept once measured: then it only says so
        elif step.name == "references" and (
            role != "pool" or (until == "annotate" and not defined)
        ):
            work.append((step, None))
    return work

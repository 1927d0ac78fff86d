"""Which samples a run has trained on: the answer to a take-down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ambient_omni.training import checkpoints
from ambient_omni.training.run_record import find_run
from ambient_omni.training.saving import SEEN_GROUP
from ambient_omni.training.seen import SeenSamples
from schemas.errors import BadInput, CheckpointRefused
from schemas.root import Root

Sighting = Literal["seen", "not seen", "not in its batches"]


@dataclass(frozen=True)
class Sightings:
    """Which of the samples asked about the weights of a run have seen, up to `step`."""

    step: int
    of: dict[str, Sighting]


def samples_seen(root: Root, run_id: str, sample_ids: Sequence[str]) -> Sightings:
    """Say which samples a run has trained on, also of those that were taken down since.

    It is read from the run's newest good checkpoint: what a killed run did after that is in no
    weights. The same bytes in several batches are one sample.

    Raises:
        BadInput: there is no such run, it has no checkpoint yet, or an id is no sample id.
    """
    run = find_run(root, run_id)
    odd = [name for name in sample_ids if len(name) != 64 or not _is_hex(name)]
    if odd:
        raise BadInput(f"{odd[0]!r} is no sample id: those are 64 hexadecimal digits")
    step, seen = _newest(root, run_id)
    rows = root.tables.open("samples").read(
        ["sample_row", "sample_id"],
        {"sample_id": list(sample_ids), "ingest_batch": run["ingest_batches"]},
        exclude=False,
    )
    marked = seen.has(rows["sample_row"].to_numpy())
    found: dict[str, Sighting] = dict.fromkeys(sample_ids, "not in its batches")
    for name, was_seen in zip(rows["sample_id"].to_pylist(), marked.tolist(), strict=True):
        if was_seen or found[name] != "seen":
            found[name] = "seen" if was_seen else "not seen"
    return Sightings(step, found)


def _newest(root: Root, run_id: str) -> tuple[int, SeenSamples]:
    for path in checkpoints.steps(root.runs / run_id / "checkpoints"):
        try:
            checkpoint = checkpoints.load(path)
            tensors = checkpoint.tensors(SEEN_GROUP)
        except CheckpointRefused:
            continue
        seen = SeenSamples()
        seen.restore(tensors)
        return checkpoint.step, seen
    raise BadInput(f"run {run_id} has no good checkpoint yet, so nothing is known of what it saw")


def _is_hex(text: str) -> bool:
    return set(text) <= set("0123456789abcdef")

"""What a run trains on: samples, their levels and their packs, at pinned versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.data.annotations import Annotations, read_annotations
from ambient_omni.data.columns import CodeColumn, RowOrder, Texts, scratch_bytes
from ambient_omni.data.packs import PackSet, Space
from ambient_omni.data.sample_ids import NUM_BYTES, SampleIds, parse_hex_into
from ambient_omni.noise.usable import CHUNK
from schemas.errors import BadInput, NotEnoughReferences
from schemas.ids import canonical_hash, hash_fraction
from schemas.known import require_reference_set
from schemas.reference_sets import HELD_OUT
from schemas.root import Root
from schemas.tables import Snapshot

if TYPE_CHECKING:
    from ambient_omni.training.config import TrainConfig

READ_TABLES = ("samples", "reference_sets", "noise_annotations")

Versions = Mapping[str, int]


@dataclass(frozen=True)
class HeldOut:
    """Samples that nobody trains on: members of validation and evaluation sets, and their twins.

    The same bytes in another batch are another sample_row, so content decides: `sample_ids`.
    """

    sample_rows: frozenset[int]
    sample_ids: frozenset[str]

    @property
    def fingerprint(self) -> str:
        """Hash of the members."""
        return canonical_hash(sorted(self.sample_ids))


def held_out(root: Root, versions: Versions, *, exclude: bool = True) -> HeldOut:
    """Read who is held out; nobody where no reference set was defined.

    Args:
        root: where the tables are.
        versions: table versions.
        exclude: leave out samples that were taken down.
    """
    if "reference_sets" not in versions:
        return HeldOut(frozenset(), frozenset())
    members = _open(root, "reference_sets", versions).read(
        ["sample_row"], {"role": list(HELD_OUT)}, exclude=exclude
    )
    rows = pc.unique(members["sample_row"]).to_pylist()
    if not rows:
        return HeldOut(frozenset(), frozenset())
    samples = _open(root, "samples", versions).read(
        ["sample_id"], {"sample_row": rows}, exclude=exclude
    )
    return HeldOut(frozenset(rows), frozenset(samples["sample_id"].to_pylist()))


@dataclass(frozen=True)
class Pinned:
    """What a run keeps of its data from the day it began, whatever is taken down later.

    sigma_data, their deviation; label_names and source_names, in the order of their numbers. Empty:
    those that are found.
    """

    sigma_data: float | None = None
    label_names: tuple[str, ...] = ()
    source_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingData:
    """N training samples in the order of sample_row, with everything a step looks up.

    sample_rows (N,) int64; sources (N,) and labels (N,), numbers in the smallest type, by name in
    source_names and label_names; labels and captions are None where nothing is conditioned on them;
    threshold, τ of the policy, where floors are soft.
    """

    packs: PackSet
    sample_rows: NDArray[np.int64]
    sample_ids: SampleIds
    annotations: Annotations
    sources: NDArray[np.unsignedinteger]
    source_names: tuple[str, ...]
    labels: NDArray[np.unsignedinteger] | None
    label_names: tuple[str, ...]
    captions: Texts | None
    num_held_out: int
    threshold: float | None = None

    def __len__(self) -> int:
        return len(self.sample_rows)

    def rows_of_pack(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the positions of samples in `packs`."""
        if self.sample_rows is self.packs.sample_rows:
            return np.asarray(index, np.int64)
        return self.packs.index_of(self.sample_rows[index])


def open_training_data(
    root: Root,
    config: TrainConfig,
    versions: Versions,
    space: Space | None = None,
    pinned: Pinned = Pinned(),
) -> TrainingData:
    """Open packs and annotations of a run at pinned versions, exclusions applied.

    Args:
        root: where the tables and packs are.
        config: of the run.
        versions: table versions.
        space: what the rows of the packs are; the run's transform by default.
        pinned: names whose numbers are to stay.

    Raises:
        BadInput: the batches hold no sample, or labels or captions are asked for and missing.
        AnnotationMissing: a sample has no row under the policy.
        NoiseSpaceMismatch: the policy's levels are of another noise space.
        PackMissing: a batch has no complete pack of the transform.
    """
    found = _Samples(root, config, versions)
    rows = found.rows
    packs = PackSet.open(root.packs, space or config.transform, config.batches)
    if np.array_equal(rows, packs.sample_rows):
        rows = packs.sample_rows
    for begin in range(0, len(rows), CHUNK):
        packs.index_of(rows[begin : begin + CHUNK])
    # The pixels first: a transform whose pack exists in another noise space than the levels.
    annotations = read_annotations(
        _open(root, "noise_annotations", versions),
        config.policy_id,
        config.batches,
        rows,
        (space or config.transform).noise_space,
        with_slope=config.sampling.soft_floors,
    )
    sources, source_names = found.sources.finish(pinned.source_names)
    labels, label_names = found.label_numbers(pinned.label_names)
    return TrainingData(
        packs=packs,
        sample_rows=rows,
        sample_ids=SampleIds(found.ids),
        annotations=annotations,
        sources=sources,
        source_names=source_names,
        labels=labels,
        label_names=label_names,
        captions=found.captions,
        num_held_out=found.num_held_out,
        threshold=_threshold(root, config.policy_id) if config.sampling.soft_floors else None,
    )


def _threshold(root: Root, policy_id: str) -> float:
    rows = root.tables.read("policies", ["parameters"], {"policy_id": policy_id}).to_pylist()
    found = json.loads(rows[0]["parameters"]).get("tau") if rows else None
    if found is None:
        raise BadInput(
            f"policy {policy_id} has no threshold tau, from which soft floors are made: set "
            "sampling.soft_floors to false, or use a policy of a noise classifier"
        )
    if not isinstance(found, int | float) or not 0 < found < 0.5:
        raise BadInput(
            f"soft floors are made from one threshold tau between 0 and 0.5, and policy "
            f"{policy_id} has {found}: set sampling.soft_floors to false, or use a "
            "classifier_threshold"
        )
    return float(found)


class _Samples:
    """The samples of a run's batches but the held-out ones, read column by column.

    rows (N,) int64; ids (N, 32) uint8; the rest as `TrainingData` has it.
    """

    def __init__(self, root: Root, config: TrainConfig, versions: Versions) -> None:
        self._kind = config.condition.kind
        order = RowOrder(_open(root, "samples", versions), {"ingest_batch": list(config.batches)})
        rows = np.empty(order.max_rows, np.int64)
        ids = scratch_bytes((order.max_rows, NUM_BYTES), root.work / "scratch")
        self.sources, self._labels = CodeColumn(), CodeColumn()
        self.captions = Texts(root.work / "scratch") if self._kind == "caption" else None
        self.num_held_out = filled = 0
        apart = pa.array(sorted(held_out(root, versions).sample_ids), pa.string())
        for part in order.parts(["sample_id", "source", *self._asked_for], ["source", "label"]):
            kept = part
            if len(apart):
                kept = part.filter(pc.invert(pc.is_in(part["sample_id"], value_set=apart)))
            end = filled + kept.num_rows
            rows[filled:end] = kept["sample_row"].to_numpy()
            parse_hex_into(kept["sample_id"], ids[filled:end])
            self._add_columns(kept)
            self.num_held_out += part.num_rows - kept.num_rows
            filled = end
        if not filled:
            raise BadInput(
                f"the batches {', '.join(config.batches)} hold no sample to train on "
                f"({self.num_held_out} are held out): ingest images or name other batches"
            )
        self.rows, self.ids = rows[:filled], ids[:filled]

    @property
    def _asked_for(self) -> list[str]:
        return [] if self._kind == "none" else [self._kind]

    def _add_columns(self, part: pa.Table) -> None:
        self.sources.add(part["source"])
        if self._kind == "label":
            self._labels.add(part["label"])
        if self.captions is not None:
            _require_captions(part)
            self.captions.add(part["caption"])

    def label_numbers(
        self, pinned: Sequence[str]
    ) -> tuple[NDArray[np.unsignedinteger] | None, tuple[str, ...]]:
        if self._kind != "label":
            return None, ()
        if self._labels.num_missing:
            raise BadInput(
                f"{self._labels.num_missing} of {len(self.rows)} samples have no label: ingest "
                "with labels, or train without `condition`"
            )
        return self._labels.finish(pinned)


def _require_captions(part: pa.Table) -> None:
    # A run that asks for captions must not learn from the empty text where there is none.
    missing = part.filter(pc.is_null(part["caption"]))
    if missing.num_rows:
        raise BadInput(
            f"samples without a caption, the first is {missing['sample_id'][0].as_py()} "
            f"(sample_row {missing['sample_row'][0].as_py()}): ingest with captions, leave the "
            "batch out, or train without `condition`"
        )


@dataclass(frozen=True)
class ReferenceImages:
    """Images of a reference set, with ids, labels and captions.

    pixels: rows of their packs, uint8 (N, H, W, C); of latents float16 (N, C, H, W).
    """

    pixels: NDArray[Any]
    sample_rows: NDArray[np.int64]
    sample_ids: tuple[str, ...]
    label_names: tuple[str | None, ...]
    captions: tuple[str | None, ...]

    def part(self, number: int, count: int) -> ReferenceImages:
        """Return every `count`-th of them, from the `number`-th on."""
        here = slice(number, None, count)
        return ReferenceImages(
            self.pixels[here],
            self.sample_rows[here],
            self.sample_ids[here],
            self.label_names[here],
            self.captions[here],
        )


def read_reference_images(
    root: Root, reference_set: str, transform: Space, versions: Versions, max_images: int
) -> ReferenceImages:
    """Read images of a reference set from their packs, at most `max_images`, chosen by content.

    Raises:
        BadInput: there is no such set.
        NotEnoughReferences: no set was defined yet.
        PackMissing: a batch of its members has no complete pack of the transform.
    """
    rows: list[int] = []
    if "reference_sets" in versions:
        members = _open(root, "reference_sets", versions)
        rows = members.read(["sample_row"], {"reference_set": reference_set})[
            "sample_row"
        ].to_pylist()
    if not rows:
        if "reference_sets" in versions:
            require_reference_set(root.tables, reference_set)
        raise NotEnoughReferences(
            f"the reference set {reference_set!r} is empty: define it with `python -m pipelines "
            "references` first"
        )
    samples = _open(root, "samples", versions).read(
        ["sample_row", "sample_id", "ingest_batch", "label", "caption"], {"sample_row": rows}
    )
    order = [hash_fraction(i, "held-out-loss") for i in samples["sample_id"].to_pylist()]
    chosen = samples.take(np.sort(np.argsort(order, kind="stable")[:max_images]))
    batches = pc.unique(chosen["ingest_batch"]).to_pylist()
    packs = PackSet.open(root.packs, transform, batches)
    chosen_rows = chosen["sample_row"].to_numpy()
    return ReferenceImages(
        pixels=packs.take(packs.index_of(chosen_rows)),
        sample_rows=chosen_rows,
        sample_ids=tuple(chosen["sample_id"].to_pylist()),
        label_names=tuple(chosen["label"].to_pylist()),
        captions=tuple(chosen["caption"].to_pylist()),
    )


def label_numbers(
    names: Sequence[str | None], known: Sequence[str], what: str
) -> NDArray[np.int64] | None:
    """Return the number of each label in `known`, or None for an unconditional model.

    Raises:
        BadInput: a label is missing or unknown.
    """
    if not known:
        return None
    number = {name: i for i, name in enumerate(known)}
    strange = [name for name in names if name not in number]
    if strange:
        raise BadInput(
            f"{len(strange)} {what} have no label that the model knows (first: {strange[0]!r}): "
            "label them, or set condition.kind to none"
        )
    return np.array([number[name] for name in names if name is not None], np.int64)


def _open(root: Root, name: str, versions: Versions) -> Snapshot:
    return root.tables.open(name, versions.get(name))

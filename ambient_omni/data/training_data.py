"""What a run trains on: samples, their levels and their packs, at pinned versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ambient_omni.data.annotations import Annotations, read_annotations
from ambient_omni.data.packs import PackSet
from ambient_omni.data.sample_ids import SampleIds
from ambient_omni.data.transforms import Transform
from ambient_omni.training.config import TrainConfig
from schemas.errors import BadInput, NotEnoughReferences
from schemas.ids import canonical_hash, hash_fraction
from schemas.reference_sets import HELD_OUT
from schemas.root import Root
from schemas.tables import Snapshot

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


def held_out(root: Root, versions: Versions) -> HeldOut:
    """Read who is held out; nobody where no reference set was defined."""
    if "reference_sets" not in versions:
        return HeldOut(frozenset(), frozenset())
    members = _open(root, "reference_sets", versions).read(["sample_row"], {"role": list(HELD_OUT)})
    rows = pc.unique(members["sample_row"]).to_pylist()
    if not rows:
        return HeldOut(frozenset(), frozenset())
    samples = _open(root, "samples", versions).read(["sample_id"], {"sample_row": rows})
    return HeldOut(frozenset(rows), frozenset(samples["sample_id"].to_pylist()))


@dataclass(frozen=True)
class TrainingData:
    """N training samples in the order of sample_row, with everything a step looks up.

    sample_rows (N,) int64; pack_index (N,) int64 positions in `packs`; labels (N,) int64 or None.
    """

    packs: PackSet
    sample_rows: NDArray[np.int64]
    pack_index: NDArray[np.int64]
    sample_ids: SampleIds
    annotations: Annotations
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    num_held_out: int

    def __len__(self) -> int:
        return len(self.sample_rows)


def open_training_data(root: Root, config: TrainConfig, versions: Versions) -> TrainingData:
    """Open packs and annotations of a run at pinned versions, exclusions applied.

    Raises:
        BadInput: the batches hold no sample, or labels are asked for and missing.
        AnnotationMissing: a sample has no row under the policy.
        NoiseSpaceMismatch: the policy's levels are of another noise space.
        PackMissing: a batch has no complete pack of the transform.
    """
    samples = _open(root, "samples", versions).read(
        ["sample_row", "sample_id", "label"], {"ingest_batch": list(config.batches)}
    )
    apart = pa.array(sorted(held_out(root, versions).sample_ids), pa.string())
    trained = samples.filter(pc.invert(pc.is_in(samples["sample_id"], value_set=apart)))
    if not trained.num_rows:
        raise BadInput(
            f"the batches {', '.join(config.batches)} hold no sample to train on "
            f"({samples.num_rows} are held out): ingest images or name other batches"
        )
    rows = trained["sample_row"].to_numpy()
    packs = PackSet.open(root.packs, config.transform, config.batches)
    labels, names = _labels(trained) if config.conditional else (None, ())
    return TrainingData(
        packs=packs,
        sample_rows=rows,
        pack_index=packs.index_of(rows),
        sample_ids=SampleIds.of_hex(trained["sample_id"]),
        annotations=read_annotations(
            _open(root, "noise_annotations", versions),
            config.policy_id,
            config.batches,
            rows,
            config.transform.noise_space,
        ),
        labels=labels,
        label_names=names,
        num_held_out=samples.num_rows - trained.num_rows,
    )


@dataclass(frozen=True)
class ReferenceImages:
    """Images of a reference set: pixels uint8 (N, H, W, C), with ids and labels."""

    pixels: NDArray[np.uint8]
    sample_rows: NDArray[np.int64]
    sample_ids: tuple[str, ...]
    label_names: tuple[str | None, ...]


def read_reference_images(
    root: Root, reference_set: str, transform: Transform, versions: Versions, max_images: int
) -> ReferenceImages:
    """Read images of a reference set from their packs, at most `max_images`, chosen by content.

    Raises:
        NotEnoughReferences: the set is empty.
        PackMissing: a batch of its members has no complete pack of the transform.
    """
    rows: list[int] = []
    if "reference_sets" in versions:
        members = _open(root, "reference_sets", versions)
        rows = members.read(["sample_row"], {"reference_set": reference_set})[
            "sample_row"
        ].to_pylist()
    if not rows:
        raise NotEnoughReferences(
            f"the reference set {reference_set!r} is empty: define it before training"
        )
    samples = _open(root, "samples", versions).read(
        ["sample_row", "sample_id", "ingest_batch", "label"], {"sample_row": rows}
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
            "label them, or train without `conditional`"
        )
    return np.array([number[name] for name in names if name is not None], np.int64)


def _labels(samples: pa.Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    missing = samples["label"].null_count
    if missing:
        raise BadInput(
            f"{missing} of {samples.num_rows} samples have no label: ingest with labels, or set "
            "conditional: false"
        )
    names = sorted(pc.unique(samples["label"]).to_pylist())
    return pc.index_in(samples["label"], pa.array(names)).to_numpy().astype(np.int64), tuple(names)


def _open(root: Root, name: str, versions: Versions) -> Snapshot:
    return root.tables.open(name, versions.get(name))

"""What a run trains on, and the batch of each step as a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_omni import rng
from ambient_omni.data.annotations import Annotations, read_annotations
from ambient_omni.data.packs import PackSet, to_x0
from ambient_omni.data.transforms import Transform
from ambient_omni.noise.eligibility import EligibilityIndex
from ambient_omni.noise.usable import Usable, hidden_level
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

    sample_rows (N,) int64; pack_index (N,) int64 positions in `packs`; noise_keys (N,) uint64, the
    address of each sample's fixed noise, from its content; labels (N,) int64 or None.
    """

    packs: PackSet
    sample_rows: NDArray[np.int64]
    pack_index: NDArray[np.int64]
    noise_keys: NDArray[np.uint64]
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
        noise_keys=_noise_keys(trained["sample_id"]),
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
class Draw:
    """The global draw of one step: `index` (B,) into the training data, `sigma` (B,) float64."""

    index: NDArray[np.int64]
    sigma: NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step; images (b, C, H, W) float32, the rest (b,)."""

    x0: Tensor
    sigma: Tensor
    hidden: Tensor
    fresh: Tensor
    fixed: Tensor | None
    labels: Tensor | None


class BatchMaker:
    """Makes the batch of any step, in any order, on any number of processes.

    All randomness is addressed by (seed, step, position in the global batch), so that a run that
    was killed goes on with the numbers it would have had.

    Raises:
        NoEligibleSample: some level of the prior has no sample that may be used.
    """

    def __init__(self, data: TrainingData, config: TrainConfig) -> None:
        self.data = data
        self._config = config
        levels = data.annotations
        self.usable = Usable.of(levels.sigma_min, levels.sigma_max, config.kappa)
        self._index = EligibilityIndex(self.usable)
        self._index.require_every_level(config.prior)

    def draw(self, step: int) -> Draw:
        """Draw the levels of a step, then a sample for each: the same on every process."""
        size, seed = self._config.batch_size, self._config.seed
        sigma = self._config.prior.sigma_of(rng.uniform(size, seed, "level", step))
        return Draw(self._index.draw(sigma, rng.uniform(size, seed, "sample", step)), sigma)

    def batch(self, step: int, draw: Draw, positions: range) -> Batch:
        """Return the images and noise of some positions of a step's global batch.

        Args:
            step: number of the step.
            draw: what `draw(step)` returned.
            positions: this process's share.
        """
        config, data = self._config, self.data
        here = slice(positions.start, positions.stop)
        index, sigma = draw.index[here], draw.sigma[here]
        x0 = to_x0(data.packs.take(data.pack_index[index]))
        hidden = hidden_level(sigma, self.usable.floor[index], config.objective, config.kappa)
        fixed = self._fixed_noise(index, x0.shape[1:]) if hidden.any() else None
        if config.horizontal_flip:
            mirrored = rng.uniform(config.batch_size, config.seed, "flip", step)[here] < 0.5
            # The fixed noise belongs to the stored image, so it is mirrored with it.
            for images in (x0, fixed):
                if images is not None:
                    images[mirrored] = images[mirrored, :, :, ::-1]
        fresh = rng.normal_rows(positions, x0.shape[1:], config.seed, "noise", step)
        return Batch(
            x0=torch.from_numpy(x0),
            sigma=torch.from_numpy(sigma.astype(np.float32)),
            hidden=torch.from_numpy(hidden.astype(np.float32)),
            fresh=torch.from_numpy(fresh),
            fixed=None if fixed is None else torch.from_numpy(fixed),
            labels=None if data.labels is None else torch.from_numpy(data.labels[index]),
        )

    def _fixed_noise(self, index: NDArray[np.int64], shape: Sequence[int]) -> NDArray[np.float32]:
        # Not keyed by the run's seed: two runs that hid an image behind different noise would
        # together give it away.
        return rng.normal_rows(self.data.noise_keys[index], shape, 0, "fixed-noise")


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


def _noise_keys(sample_ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    # 64 of the 256 bits: two of 1e8 images share a key with probability 3e-4, and then they share
    # their noise, which harms nothing.
    return np.array([int(name[:16], 16) for name in sample_ids.to_pylist()], np.uint64)


def _open(root: Root, name: str, versions: Versions) -> Snapshot:
    return root.tables.open(name, versions.get(name))

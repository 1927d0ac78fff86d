"""What all benchmarks share: a result on disk, and the caches they keep outside the repository."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ambient_omni.code_version import code_version

RESULTS = Path(__file__).parent / "results"


class Result(BaseModel):
    """One figure with everything needed to judge it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    figure: float
    unit: str
    goal: float
    better: Literal["higher", "lower"]
    compared_with: str
    spread: str
    note: str
    versions: dict[str, str]
    machine: str
    code_version: str
    date: str

    @property
    def is_reached(self) -> bool:
        """Whether the figure is at least as good as the goal."""
        return self.figure >= self.goal if self.better == "higher" else self.figure <= self.goal


def record(
    name: str,
    figure: float,
    *,
    unit: str,
    goal: float,
    better: Literal["higher", "lower"],
    compared_with: str,
    spread: str,
    note: str = "",
    packages: Sequence[str] = ("torch", "numpy"),
) -> Result:
    """Write ``benchmarks/results/NAME.json``, print its line, and return it.

    Args:
        name: of the result; it names the file.
        figure: what was measured.
        unit: of the figure; "ratio" for two things measured side by side.
        goal: what is aimed at.
        better: whether a higher or a lower figure is better.
        compared_with: the other side of the ratio, or what the figure is of.
        spread: how it varied, e.g. "median of 7 rounds, 1.18 .. 1.31".
        note: anything a reader has to know.
        packages: whose versions matter.
    """
    result = Result(
        name=name,
        figure=figure,
        unit=unit,
        goal=goal,
        better=better,
        compared_with=compared_with,
        spread=spread,
        note=note,
        versions={package: _version(package) for package in packages},
        machine=machine(),
        code_version=code_version(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result.model_dump(), indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    verdict = "reached" if result.is_reached else "NOT reached"
    print(f"{name}: {figure:.4g} {unit} (goal {goal:g}, {verdict}); {spread}")
    return result


def withdraw(name: str) -> None:
    """Remove a result that is no longer one, so that an old figure does not stand for it."""
    (RESULTS / f"{name}.json").unlink(missing_ok=True)


def read_results() -> list[Result]:
    """Return all results on disk, by name."""
    return [Result.model_validate_json(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]


def machine() -> str:
    """Return what the figures were measured on: cores, memory, processor, Python."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores, {pages / 2**30:.0f} GiB, {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def cache_folder(name: str) -> Path:
    """Return (and make) a folder for what a benchmark downloads or builds."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "ambient-omni" / "bench" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def interleaved(
    sides: dict[str, Callable[[], object]], rounds: int, *, warmups: int = 1
) -> dict[str, list[float]]:
    """Time several things in turns, so that a noisy machine is noisy to all of them.

    Returns:
        Seconds of every round, by side.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmups + rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            took = time.perf_counter() - began
            if number >= warmups:
                times[name].append(took)
    return times


def ratio_of_rounds(over: Sequence[float], under: Sequence[float]) -> tuple[float, str]:
    """Return the median over rounds of over/under, and how it spread."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    spread = f"median of {len(ratios)} rounds, {min(ratios):.3g} .. {max(ratios):.3g}"
    return statistics.median(ratios), spread


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

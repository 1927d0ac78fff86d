"""Computing one task and keeping its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni.code_version import code_version
from ambient_omni.data.packs import to_x0
from ambient_omni.evaluation import heldout_loss
from benchmarks.evidence import measures
from benchmarks.evidence.arms import Known, levels_of
from benchmarks.evidence.cells import Arm, Cell, Form, Task
from benchmarks.evidence.curves import curves
from benchmarks.evidence.images import split_of
from benchmarks.evidence.scenes import scene_of
from benchmarks.evidence.store import Store
from benchmarks.evidence.training import model_of, train
from pipelines.pilot.measure import Measured

Facts = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
Told = Callable[[float], None]

_BANDS = (0.05, 0.2, 0.5, 1.0, 2.0)
_WEIGHT = "weight/"


def compute(task: Task, form: Form, store: Store, told: Told = lambda _: None) -> None:
    """Compute a task whose needs are there, and keep the result.

    Args:
        task: what.
        form: of the study.
        store: where its needs are and its result goes.
        told: called with the share that is done, from time to time.
    """
    began, cpu = time.perf_counter(), time.process_time()
    facts, arrays = _STAGES[task.stage](task.cell, form, store, told)
    spent = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "code_version": code_version(),
    }
    store.keep(task, form, {**facts, **spent}, arrays)


def _curves(cell: Cell, form: Form, store: Store, told: Told) -> tuple[Facts, Arrays]:
    return curves(cell.problem, scene_of(cell, form), form)


def _windows(cell: Cell, form: Form, store: Store, told: Told) -> tuple[Facts, Arrays]:
    from benchmarks.evidence.windows import windows

    return windows(cell.problem, scene_of(cell, form), form)


def _train(cell: Cell, form: Form, store: Store, told: Told) -> tuple[Facts, Arrays]:
    scene = scene_of(cell, form)
    chosen = levels_of(cell.arm, _known(Task.of("train", cell), form, store))
    settings = form.training
    trained = train(
        scene.images,
        chosen.levels,
        scene.validation,
        settings,
        cell.problem.seed,
        told=lambda seen: told(seen / settings.num_images),
    )
    model = model_of(trained.weights, settings)
    found = measures.measured(model, scene.validation, settings.check_sigmas)
    pool = chosen.sigma_min[len(scene.reference) :]
    facts = {
        "levels": chosen.facts | _summary(pool),
        # How many images stand behind a level: 1 / sum of squared shares.
        "effective_images": {
            f"{sigma:g}": float(1 / np.square(chosen.levels.shares(sigma)).sum())
            for sigma in _BANDS
        },
        "curve": trained.curve,
        "selected_at": trained.curve[trained.best][0],
        "validation_loss": found.loss.mean(axis=0).tolist(),
    }
    arrays: Arrays = {"loss": found.loss, "right": found.right, "power": found.power}
    arrays["whole"] = found.whole
    return facts, arrays | {f"{_WEIGHT}{n}": t.numpy() for n, t in trained.weights.items()}


def _measure(cell: Cell, form: Form, store: Store, told: Told) -> tuple[Facts, Arrays]:
    weights = {
        name.removeprefix(_WEIGHT): torch.from_numpy(array)
        for name, array in store.arrays(Task.of("train", cell), form).items()
        if name.startswith(_WEIGHT)
    }
    model, data = model_of(weights, form.training), cell.problem.data
    test = split_of(data, "test")
    part = test.at(np.arange(min(form.num_test, len(test))))
    loss = heldout_loss(model.denoiser, to_x0(part.pixels), part.names, form.test_sigmas)
    made = measures.samples_of(model, form.samples, form.training.prior)
    told(0.4)
    _, which = np.unique(part.origins, return_inverse=True)
    counts = np.bincount(which)
    sums = np.stack([np.bincount(which, column) for column in loss.T], axis=1)
    side = form.feature_side
    features = measures.features(made, side)
    facts: Facts = {
        split: measures.compare_samples(features, data, split, side)
        for split in ("validation", "test")
    }
    facts["test"]["loss"] = loss.mean(axis=0).tolist()
    arrays = {"samples": made, "loss_of_photo": sums / counts[:, None], "images_of_photo": counts}
    return facts, arrays


def _nearest(cell: Cell, form: Form, store: Store, told: Told) -> tuple[Facts, Arrays]:
    """Measure how near samples are to what the network saw, at whichever level."""
    made = store.arrays(Task.of("measure", cell), form)["samples"]
    test = split_of(cell.problem.data, "test")
    unseen = test.pixels[: form.num_test]
    known = _known(Task.of("train", cell), form, store)
    levels = levels_of(cell.arm, known).levels
    is_seen = np.any([levels.shares(sigma) > 0 for sigma in form.test_sigmas], axis=0)
    seen = known.scene.images.pixels[is_seen]
    near = {
        "samples_to_training": measures.nearest(made, seen),
        "samples_to_reference": measures.nearest(made, known.scene.reference.pixels),
        "test_to_training": measures.nearest(unseen, seen),
        "test_to_reference": measures.nearest(unseen, known.scene.reference.pixels),
    }
    medians = {name: float(np.median(found)) for name, found in near.items()}
    return {"nearest": medians, "copies": _copies(near)}, {}


def _copies(near: dict[str, NDArray[np.float64]]) -> float:
    """Return the share of samples nearer to a training image than 99 % of the test images are."""
    bar = np.quantile(near["test_to_training"], 0.01)
    return float((near["samples_to_training"] < bar).mean())


def _known(task: Task, form: Form, store: Store) -> Known:
    cell = task.cell
    found: dict[str, dict[str, NDArray[Any]]] = {}
    pilots: dict[Arm, Measured] = {}
    for need in task.needs():
        its_form = task.form_of(need, form)
        arrays = store.arrays(need, its_form)
        if need.stage == "train":
            parts = (arrays[name] for name in ("loss", "right", "power", "whole"))
            pilots[need.cell.arm] = Measured(its_form.training.check_sigmas, *parts)
        else:
            found[need.stage] = arrays
    windows = found["windows"]["sigma_max"] if "windows" in found else None
    return Known(scene_of(cell, form), form, found.get("curves", {}), windows, pilots)


def _summary(sigma_min: NDArray[np.float64]) -> Facts:
    never = ~np.isfinite(sigma_min)
    known = np.where(never, np.inf, sigma_min)
    quantiles = np.quantile(known, (0.1, 0.5, 0.9), method="inverted_cdf")
    return {
        "share_everywhere": float((sigma_min == 0).mean()),
        "share_never": float(never.mean()),
        # None: at no high level.
        "quantiles": [float(level) if np.isfinite(level) else None for level in quantiles],
    }


_STAGES: dict[str, Callable[[Cell, Form, Store, Told], tuple[Facts, Arrays]]] = {
    "curves": _curves,
    "windows": _windows,
    "train": _train,
    "measure": _measure,
    "nearest": _nearest,
}

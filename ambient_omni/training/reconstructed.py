"""Averages of other widths, made after training from a run's snapshots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni.training import checkpoints
from ambient_omni.training.checkpoints import Checkpoint, Tensors
from ambient_omni.training.posthoc import (
    Profile,
    gamma_of_sigma_rel,
    mismatch,
    reconstruction,
)
from ambient_omni.training.run_record import find_run
from schemas.errors import BadInput
from schemas.root import Root

# Farther from the profile that is asked for, a mix is another average, whose coefficients do not
# sum to 1 either.
_WORST_MISMATCH = 0.1


def reconstruct(root: Root, run_id: str, sigma_rel: float, num_images: int | None = None) -> Path:
    """Make the power-function average of any width from a run's snapshots; return its folder.

    The folder is a checkpoint that can be evaluated, sampled and exported; it holds no optimizer.

    Args:
        root: where the run is.
        run_id: a run with `power_ema.sigma_rels`.
        sigma_rel: relative width, below 0.2887.
        num_images: the time of the average; None = that of the last snapshot.

    Raises:
        BadInput: no such run, no snapshots, or a width or time that they do not reach.
        CheckpointRefused: a snapshot is damaged.
    """
    find_run(root, run_id)
    folder = root.runs / run_id
    snapshots = [checkpoints.load(path) for path in checkpoints.steps(folder / "snapshots")]
    if not snapshots:
        raise BadInput(f"run {run_id} has no snapshots: train with power_ema.sigma_rels")
    sources = [
        (snapshot, group, Profile(**profile))
        for snapshot in snapshots
        for group, profile in snapshot.state["profiles"].items()
    ]
    profiles = [profile for _, _, profile in sources]
    time = max(profile.time for profile in profiles) if num_images is None else num_images
    coefficients = _coefficients(run_id, profiles, sigma_rel, time)
    average = _mix([source[:2] for source in sources], coefficients.tolist())
    parents = {**snapshots[0].parents, "power_ema": {"sigma_rel": sigma_rel, "num_images": time}}
    step = round(time / snapshots[0].parents["config"]["batch_size"])
    name = folder / "averages" / f"sigma_rel-{sigma_rel:g}"
    return checkpoints.save(name, step, {"ema": average}, parents, {})


def _coefficients(
    run_id: str, profiles: list[Profile], sigma_rel: float, time: float
) -> NDArray[np.float64]:
    if time < 1:
        raise BadInput(f"an average over {time:g} images is none: leave images out, or give more")
    try:
        wanted = Profile(gamma_of_sigma_rel(sigma_rel), time)
        coefficients = reconstruction(profiles, wanted)
    except ValueError as error:
        raise BadInput(f"run {run_id}: {error}") from error
    off = mismatch(profiles, coefficients, wanted)
    if off > _WORST_MISMATCH:
        times = ", ".join(f"{t:g}" for t in sorted({profile.time for profile in profiles}))
        raise BadInput(
            f"no mix of the snapshots of run {run_id} comes near a width of {sigma_rel:g} at "
            f"{time:g} images ({off:.0%} off): ask for a time at which there is a snapshot "
            f"({times}), or for a width nearer to those of power_ema.sigma_rels"
        )
    return coefficients


def _mix(sources: list[tuple[Checkpoint, str]], coefficients: list[float]) -> Tensors:
    """Return Σ coefficient · snapshot, summed in float64: coefficients may cancel."""
    total: Tensors = {}
    for (snapshot, group), coefficient in zip(sources, coefficients, strict=True):
        for name, tensor in snapshot.tensors(group).items():
            part = coefficient * tensor.double()
            total[name] = part if name not in total else total[name].add_(part)
    return {name: tensor.to(torch.float32) for name, tensor in total.items()}

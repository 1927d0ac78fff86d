"""What a run would do, without doing it: its settings, its samples, and how long it takes."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from ambient_omni.config import resolved
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.drawing import skew_lines
from ambient_omni.data.loaders import make_loader
from ambient_omni.models.networks import num_parameters
from ambient_omni.noise.soft import SoftDrawer
from ambient_omni.noise.usable import Levels, effective_samples_per_group
from ambient_omni.training import distribution
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.engine import Engine
from ambient_omni.training.opening import open_run
from ambient_omni.training.run_record import RunRecord
from schemas.root import Root

# Edges of the bands that people are shown; one octave or two each, over the prior's bulk.
BANDS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 25.6)

# The error of soft floors is measured at so many levels of the prior, equally likely each.
_ERROR_LEVELS = 9

# Steps are timed for so long, after those that allocate and compile.
_TIMED_SECONDS = 3.0
_MOST_TIMED_STEPS = 20
_UNTIMED_STEPS = 2


def describe(root: Root, config: TrainConfig) -> str:
    """Return the resolved config, the share of the pool usable per noise band, and the work.

    A few steps of the very network are taken and timed; nothing is written.

    Raises:
        AmbientOmniError: for whatever would stop the run before its first step.
    """
    run = RunRecord.of(root, config)
    config, opened = run.config, open_run(run)
    data, maker, model = opened.data, opened.batches, opened.model
    weights = num_parameters(model.denoiser)
    trained = sum(parameter.numel() for parameter in model.trainable().values())
    accelerator = distribution.make_accelerator(config)
    pace = measure(config, maker, Engine(model, config, accelerator), accelerator)
    passes = config.num_steps * config.batch_size / len(data)
    return "\n".join(
        [
            resolved(config),
            f"run {run.run_id}{' (finished)' if run.is_finished() else ''}",
            f"{len(data)} samples, {data.num_held_out} held out, "
            f"{maker.usable.num_never_usable} usable at no level, "
            f"{maker.num_unreachable} at no level of the prior",
            *usable_lines(maker, config),
            *skew_lines(data, maker.usable, BANDS),
            f"{weights} weights, {trained} of them trained, "
            f"{config.num_steps} steps of {config.batch_size} images, {passes:.1f} passes over the "
            "samples",
            f"{pace.steps_per_second:.3g} steps/s ({pace.images_per_second:.4g} images/s) on "
            f"{pace.device} with {pace.num_processes} process(es): "
            f"{pace.hours(config.num_steps):.3g} hours, without evaluation",
        ]
    )


def usable_lines(maker: BatchMaker, config: TrainConfig) -> list[str]:
    """Return a line per noise band: its share of the prior, and of the samples usable in it.

    Under soft floors a sample counts as far as it is accepted, and a line says how far the draws
    are from exact ones.
    """
    total, drawer = len(maker.data), maker.drawer
    lines = ["sigma band        of the prior   usable samples"]
    for (low, high), share, count in zip(
        itertools.pairwise(BANDS), _prior_shares(config), _usable_per_band(maker), strict=True
    ):
        lines.append(f"{low:7.3g} ..{high:7.3g} {share:11.1%} {count:12.1f} ({count / total:.1%})")
    if isinstance(drawer, SoftDrawer):
        levels = config.prior.sigma_of((np.arange(_ERROR_LEVELS) + 0.5) / _ERROR_LEVELS)
        error, sigma = max((drawer.quantisation_error(level), level) for level in levels)
        lines.append(
            f"soft floors: by cells, draws differ from exact ones by {error:.2%} at most "
            f"(total variation, at sigma {sigma:.3g})"
        )
    return lines


def _usable_per_band(maker: BatchMaker) -> Levels:
    if isinstance(maker.drawer, SoftDrawer):
        grids = [np.geomspace(low, high, 33) for low, high in itertools.pairwise(BANDS)]
        return np.array([maker.drawer.count(np.sqrt(g[1:] * g[:-1])).mean() for g in grids])
    one_group = np.broadcast_to(np.uint8(0), len(maker.data))
    counts: Levels = effective_samples_per_group(maker.usable, one_group, 1, BANDS)[:, 0]
    return counts


@dataclass(frozen=True)
class Pace:
    """How fast steps are."""

    seconds_per_step: float
    batch_size: int
    device: str
    num_processes: int

    @property
    def steps_per_second(self) -> float:
        """Steps in a second."""
        return 1 / self.seconds_per_step

    @property
    def images_per_second(self) -> float:
        """Images in a second, over all processes."""
        return self.batch_size / self.seconds_per_step

    def hours(self, num_steps: int) -> float:
        """Return how long so many steps take."""
        return num_steps * self.seconds_per_step / 3600


def measure(
    config: TrainConfig, maker: BatchMaker, engine: Engine, accelerator: Accelerator
) -> Pace:
    """Time real steps on real batches; the engine's weights are of no use afterwards."""
    batches = make_loader(
        maker,
        config.loader,
        start_step=0,
        num_steps=_UNTIMED_STEPS + _MOST_TIMED_STEPS,
        positions=distribution.share(config.batch_size, accelerator),
    )
    times: list[float] = []
    since = time.perf_counter()
    for number, batch in enumerate(batches):
        engine.step(number, batch)
        now = time.perf_counter()
        times.append(now - since)
        since = now
        if distribution.of_main(sum(times[_UNTIMED_STEPS:]) > _TIMED_SECONDS, accelerator):
            break
    seconds = statistics.median(times[_UNTIMED_STEPS:])
    device = str(accelerator.device)
    return Pace(seconds, config.batch_size, device, accelerator.num_processes)


def _prior_shares(config: TrainConfig) -> Levels:
    shares: Levels = np.diff(config.prior.cdf(np.array(BANDS)))
    return shares

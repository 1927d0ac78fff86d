"""What a run would do, without doing it."""

from __future__ import annotations

from ambient_omni.config import resolved
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.training_data import TrainingData, open_training_data
from ambient_omni.models.networks import build_denoiser, num_parameters
from ambient_omni.noise.usable import Levels, effective_samples_per_band
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.run_record import RunRecord
from schemas.root import Root

# Edges of the bands that people are shown; one octave or two each, over the prior's bulk.
BANDS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 25.6)


def describe(root: Root, config: TrainConfig) -> str:
    """Return the resolved config, the share of the pool usable per noise band, and the work.

    Raises:
        AmbientOmniError: for whatever would stop the run before its first step.
    """
    run = RunRecord.of(root, config)
    data = open_training_data(root, config, run.versions)
    usable = BatchMaker(data, config).usable
    denoiser = build_denoiser(config.network, config.transform.resolution, len(data.label_names))
    passes = config.num_steps * config.batch_size / len(data)
    return "\n".join(
        [
            resolved(config),
            f"run {run.run_id}{' (finished)' if run.is_finished() else ''}",
            f"{len(data)} samples, {data.num_held_out} held out, "
            f"{usable.num_never_usable} usable at no level",
            *usable_lines(data, config),
            f"{num_parameters(denoiser)} weights, {config.num_steps} steps of "
            f"{config.batch_size} images, {passes:.1f} passes over the samples",
        ]
    )


def usable_lines(data: TrainingData, config: TrainConfig) -> list[str]:
    """Return a line per noise band: its share of the prior, and of the samples usable in it."""
    levels = data.annotations
    counts = effective_samples_per_band(levels.sigma_min, levels.sigma_max, BANDS, config.kappa)
    prior: Levels = config.prior.cdf(BANDS)
    lines = ["sigma band        of the prior   usable samples"]
    for low, high, share, count in zip(
        BANDS[:-1], BANDS[1:], prior[1:] - prior[:-1], counts, strict=True
    ):
        lines.append(
            f"{low:7.3g} ..{high:7.3g} {share:11.1%} {count:12.1f} ({count / len(data):.1%})"
        )
    return lines

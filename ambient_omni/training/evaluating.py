"""Held-out loss and sample grids of a run, as it trains and at its end."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from ambient_omni.data.training_data import ReferenceImages
from ambient_omni.evaluation import HeldOutLoss, reference_losses, summed_up
from ambient_omni.generation.grids import save_grid
from ambient_omni.generation.sampling import Sampler
from ambient_omni.training import distribution
from ambient_omni.training.engine import Engine
from ambient_omni.training.models import space_of
from ambient_omni.training.run_record import RunRecord


class Evaluator:
    """Measures and samples the averaged weights.

    Sharded weights are gathered layer by layer, so every process takes part in everything;
    otherwise images of the held-out loss are shared out, and the main one draws samples alone.

    Args:
        run: its settings and folder.
        accelerator: the processes; all of them call every method.
        images: what the loss is measured on.
        label_names: the model's classes; empty if it has none.
    """

    def __init__(
        self,
        run: RunRecord,
        accelerator: Accelerator,
        images: ReferenceImages,
        label_names: tuple[str, ...],
    ) -> None:
        self._run, self._accelerator = run, accelerator
        self._images, self._label_names = images, label_names

    def held_out(self, engine: Engine, checkpoint: str) -> HeldOutLoss | None:
        """Return the held-out loss; None in a process that does not need it.

        Each process measures its share of the images. Their noise is addressed by their names, so
        that it is the same however many share.
        """
        config, here = self._run.config.held_out, self._accelerator
        shared = here.num_processes > 1 and not engine.is_sharded
        count, number = (here.num_processes, here.process_index) if shared else (1, 0)
        with engine.averaged() as model:
            mine = reference_losses(
                model, self._images.part(number, count), config, self._label_names
            )
            sigma_data = model.parameterisation.sigma_data
        losses = mine
        if shared:
            losses = np.empty((len(self._images.sample_rows), len(config.sigmas)))
            for other, part in enumerate(distribution.all_of([mine], here)):
                losses[other::count] = part
            if not here.is_main_process:
                return None
        return summed_up(losses, self._images, config, checkpoint, sigma_data)

    def save_samples(self, engine: Engine, name: str) -> None:
        """Draw a grid at the run's fixed seed, labels and prompts into its folder."""
        if not self._takes_part(engine):
            return
        config = self._run.config
        with engine.averaged() as model:
            sampler = Sampler(
                model, config.samples, space_of(config).x0_shape, self._label_names, config.prior
            )
            images = sampler.first(config.samples.num_images)
        if self._accelerator.is_main_process:
            titles = sampler.titles(len(images))
            save_grid(images, self._run.folder / name, captions=titles)

    def _takes_part(self, engine: Engine) -> bool:
        return engine.is_sharded or self._accelerator.is_main_process

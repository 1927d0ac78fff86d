"""Held-out loss and sample grids of a run, as it trains and at its end."""

from __future__ import annotations

from accelerate import Accelerator

from ambient_omni.data.training_data import ReferenceImages
from ambient_omni.evaluation import HeldOutLoss, evaluate_reference
from ambient_omni.generation.grids import save_grid
from ambient_omni.generation.sampling import Sampler
from ambient_omni.training.engine import Engine
from ambient_omni.training.models import space_of
from ambient_omni.training.run_record import RunRecord


class Evaluator:
    """Measures and samples the averaged weights.

    Sharded weights are gathered layer by layer, so every process has to take part; otherwise the
    main one does it alone.

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
        """Return the held-out loss; None in a process that was not needed."""
        if not self._takes_part(engine):
            return None
        with engine.averaged() as model:
            return evaluate_reference(
                model,
                self._images,
                self._run.config.held_out,
                checkpoint,
                self._label_names,
            )

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

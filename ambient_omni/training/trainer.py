"""Training: obeys the annotation table, resumes exactly, selects by held-out loss."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ambient_omni import rng
from ambient_omni.data.batches import Batch, BatchMaker
from ambient_omni.data.training_data import open_training_data, read_reference_images
from ambient_omni.evaluation import evaluate_reference, keep_heldout
from ambient_omni.generation.sampling import sample_images, save_grid
from ambient_omni.interrupts import StopRequest
from ambient_omni.models.networks import build_denoiser
from ambient_omni.models.objectives import denoising_loss, denoising_pair
from ambient_omni.progress import progress
from ambient_omni.training import checkpoints
from ambient_omni.training.audit import Audit
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.optimization import Ema, ema_decay, learning_rate
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trained import load_checkpoint
from schemas.errors import BadInput, CheckpointRefused, TrainingFailed
from schemas.root import Root

_LOG = logging.getLogger(__name__)


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C was pressed; the run is saved. The message says how to go on."""


def train(root: Root, config: TrainConfig, *, show: bool = True) -> str:
    """Train a denoiser on annotated batches; return the run's id.

    The same call goes on with a run that was stopped, and does nothing for one that is finished.

    Args:
        root: where the tables and packs are, and the run goes.
        config: the run.
        show: draw a progress bar.

    Raises:
        AnnotationMissing: a sample has no level under the policy.
        NoiseSpaceMismatch: the policy's levels are of another noise space.
        NoEligibleSample: some level of the prior has no sample that may be used.
        NotEnoughReferences: the held-out set is empty.
        PackMissing: a batch has no complete pack.
        TrainingFailed: the loss was not finite too often.
        TrainingStopped: Ctrl-C; saved first.
        JobAlreadyRunning: the same run is being trained by another process.
    """
    run = RunRecord.of(root, config)
    if run.is_finished():
        return run.run_id
    accelerator = _accelerator(run)
    main = accelerator.is_main_process
    lock = root.lock("train", run.run_id) if main else contextlib.nullcontext()
    with lock:
        trainer = Trainer(run, accelerator, show=show and main)
        try:
            trainer.fit()
        except Exception:
            trainer.record("failed")
            raise
        finally:
            accelerator.end_training()
    return run.run_id


@dataclass
class _Progress:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    nonfinite_steps: int = 0
    best: str | None = None
    best_loss: float = math.inf


class Trainer:
    """One run in one process of possibly several. `fit` is the loop; the rest is called by it."""

    def __init__(self, run: RunRecord, accelerator: Accelerator, *, show: bool) -> None:
        config = self._config = run.config
        self._run, self._accelerator, self._show = run, accelerator, show
        self._positions = _share(config.batch_size, accelerator)
        self._data = open_training_data(run.root, config, run.versions)
        self._batches = BatchMaker(self._data, config)
        self._references = read_reference_images(
            run.root,
            config.held_out.reference_set,
            config.transform,
            run.versions,
            config.held_out.max_images,
        )
        self._audit = Audit(self._data.annotations, config.kappa)
        denoiser = build_denoiser(
            config.network, config.transform.resolution, len(self._data.label_names), config.seed
        )
        optimizer = torch.optim.AdamW(
            denoiser.parameters(),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.epsilon,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self._model, self._optimizer = accelerator.prepare(denoiser, optimizer)
        self._denoiser = accelerator.unwrap_model(self._model)
        self._parameters = list(self._denoiser.parameters())
        self._ema = Ema(self._denoiser)
        self._done = _Progress()
        self._window = _LogWindow()

    def fit(self) -> None:
        """Train from the newest good checkpoint to the end of the budget."""
        self._resume()
        if self._accelerator.is_main_process:
            self._run.begin()
        self.record("running")
        config, done = self._config, self._done
        size = config.batch_size
        with (
            StopRequest() as stop,
            progress(
                total=config.num_steps * size,
                initial=done.step * size,
                label=f"training {config.name}",
                unit="images",
                show=self._show,
            ) as bar,
        ):
            while done.step < config.num_steps:
                self._step(done.step)
                done.step += 1
                bar.update(size)
                last = done.step == config.num_steps
                if last or self._due(config.log_every_images):
                    self._log()
                stopping = self._everywhere(stop.requested)
                if last or self._due(config.evaluate_every_images):
                    self._evaluate_and_save()
                elif stopping:
                    self._save()
                if stopping and not last:
                    self._stopped()
            self._finish()
        if stop.requested:
            raise TrainingStopped(f"stopped; training {config.name} was just finished")

    def record(self, status: str) -> None:
        """Write the run's row, from the main process."""
        if not self._accelerator.is_main_process:
            return
        best = self._done.best
        self._run.write(
            status,
            num_images_seen=self._images_seen,
            checkpoint=None if best is None else self._run.checkpoints / best,
            metrics={"held_out_total": self._done.best_loss} if best is not None else {},
            audit=self._audit_state(),
        )

    @property
    def _images_seen(self) -> int:
        return self._done.step * self._config.batch_size

    def _step(self, step: int) -> None:
        config, accelerator = self._config, self._accelerator
        rate = learning_rate(config.optimizer, self._images_seen, config.num_images)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        draw = self._batches.draw(step)
        self._audit.add(draw.index, draw.sigma)
        loss = self._loss(self._batches.batch(step, draw, self._positions), step)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self._parameters, config.optimizer.gradient_clip)
        # Ranks share the gradient, so they agree on this without asking each other. Under fp16 the
        # gradient scaler skips overflows by itself and has to see every step.
        finite = bool(torch.isfinite(loss if config.precision == "fp16" else norm))
        if finite or config.precision == "fp16":
            self._optimizer.step()
            seen = self._images_seen + config.batch_size
            self._ema.update(self._parameters, ema_decay(config.ema, seen, config.batch_size))
        self._optimizer.zero_grad()
        if finite:
            self._window.add(float(loss.detach()), float(norm), rate)
        else:
            self._count_nonfinite(step, self._data.sample_rows[draw.index])

    def _loss(self, batch: Batch, step: int) -> Tensor:
        device = self._accelerator.device
        x0, sigma, hidden, fresh = (
            part.to(device, non_blocking=True)
            for part in (batch.x0, batch.sigma, batch.hidden, batch.fresh)
        )
        fixed = None if batch.fixed is None else batch.fixed.to(device, non_blocking=True)
        labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
        pair = denoising_pair(x0, sigma, hidden, fresh, fixed)
        with self._dropout(step):
            predicted = self._model(pair.x_t, sigma, labels)
        return denoising_loss(predicted, pair.target, sigma).mean()

    def _dropout(self, step: int) -> contextlib.AbstractContextManager[None]:
        if not self._config.network.dropout:
            return contextlib.nullcontext()
        rank = self._accelerator.process_index
        return rng.torch_seeded(self._config.seed, "dropout", step, rank)

    def _count_nonfinite(self, step: int, sample_rows: Any) -> None:
        self._done.nonfinite_steps += 1
        _LOG.warning("step %d skipped: the loss or its gradient is not finite", step)
        if self._done.nonfinite_steps > self._config.max_nonfinite_steps:
            raise TrainingFailed(
                f"{self._done.nonfinite_steps} steps without a finite loss, the last one step "
                f"{step} (first sample_row {sample_rows[0]}): lower optimizer.learning_rate or "
                "look at those images"
            )

    def _due(self, every_images: int) -> bool:
        every = max(1, every_images // self._config.batch_size)
        return self._done.step % every == 0

    def _everywhere(self, flag: bool) -> bool:
        if self._accelerator.num_processes == 1:
            return flag
        here = torch.tensor(float(flag), device=self._accelerator.device)
        return bool(self._accelerator.reduce(here, "sum") > 0)

    def _log(self) -> None:
        values = self._window.flush()
        if not values or not self._accelerator.is_main_process:
            return
        self._run.log({"step": self._done.step, "images": self._images_seen, **values})
        self._accelerator.log(values, step=self._done.step)

    def _evaluate_and_save(self) -> None:
        if self._accelerator.is_main_process:
            name = f"step-{self._done.step:08d}"
            loss = evaluate_reference(
                self._ema.module,
                self._references,
                self._config.held_out,
                name,
                self._data.label_names,
            )
            self._run.log(
                {
                    "step": self._done.step,
                    "images": self._images_seen,
                    "held_out_total": loss.total,
                    "held_out_weighted": loss.weighted,
                }
            )
            self._accelerator.log({"held_out_total": loss.total}, step=self._done.step)
            # A loss that is not a number is never best.
            if loss.total < self._done.best_loss:
                self._done.best, self._done.best_loss = name, loss.total
            if self._config.samples.each_evaluation:
                self._save_samples(f"samples-{self._done.step:08d}.png")
        self._save()
        self.record("running")

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            done = self._done
            checkpoints.save(
                self._run.checkpoints,
                done.step,
                {
                    "model": self._denoiser.state_dict(),
                    "ema": self._ema.module.state_dict(),
                    "optimizer": checkpoints.optimizer_tensors(self._optimizer),
                },
                {**self._run.parents, "label_names": list(self._data.label_names)},
                {
                    "nonfinite_steps": done.nonfinite_steps,
                    "best": done.best,
                    "best_loss": done.best_loss if done.best is not None else None,
                    "audit": self._audit.state(),
                },
            )
            newest = [p.name for p in checkpoints.steps(self._run.checkpoints)]
            keep = newest[: self._config.keep_checkpoints]
            checkpoints.prune(self._run.checkpoints, [*keep, done.best or ""])
        self._accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Load the newest checkpoint that is whole; say which ones were not."""
        for path in checkpoints.steps(self._run.checkpoints):
            try:
                self._load(path)
            except CheckpointRefused as error:
                _LOG.warning("%s; trying the one before", error)
                continue
            _LOG.info("going on from %s", path.name)
            break
        if self._accelerator.is_main_process:
            self._run.forget_metrics_after(self._done.step)

    def _load(self, path: Any) -> None:
        expect = {"noise_space": self._config.transform.noise_space, "run_id": self._run.run_id}
        found = checkpoints.load(path, expect)
        checkpoints.load_into(self._denoiser, found.tensors("model"), path)
        checkpoints.load_into(self._ema.module, found.tensors("ema"), path)
        checkpoints.load_optimizer(self._optimizer, found.tensors("optimizer"))
        self._audit.restore(found.state["audit"])
        best = found.state["best"]
        self._done.step = found.step
        self._done.nonfinite_steps = found.state["nonfinite_steps"]
        # The best one may be gone if a newer checkpoint that replaced it was damaged.
        if best is not None and (self._run.checkpoints / best).is_dir():
            self._done.best, self._done.best_loss = best, found.state["best_loss"]

    def _stopped(self) -> None:
        self.record("interrupted")
        raise TrainingStopped(
            f"training {self._config.name} stopped after {self._images_seen} of "
            f"{self._config.num_steps * self._config.batch_size} images and saved; run the same "
            "command again to go on"
        )

    def _finish(self) -> None:
        """Select the best checkpoint, measure and sample it, and declare the run finished."""
        if not self._accelerator.is_main_process:
            return
        if self._done.best is None:
            raise TrainingFailed(
                "the held-out loss was never finite: lower optimizer.learning_rate"
            )
        path = self._run.checkpoints / self._done.best
        model = load_checkpoint(path, self._config.transform.noise_space)
        self._ema.module.load_state_dict(model.denoiser.state_dict())
        loss = evaluate_reference(
            self._ema.module,
            self._references,
            self._config.held_out,
            path.name,
            self._data.label_names,
        )
        keep_heldout(self._run.folder, loss)
        self._save_samples("samples.png")
        self._run.write(
            "finished",
            num_images_seen=self._images_seen,
            checkpoint=path,
            metrics=loss.model_dump(exclude={"per_image", "sample_rows"}),
            audit=self._audit_state(),
        )

    def _save_samples(self, name: str) -> None:
        config = self._config
        images = sample_images(
            self._ema.module,
            config.samples,
            config.transform.shape,
            num_classes=len(self._data.label_names),
        )
        save_grid(images, self._run.folder / name)

    def _audit_state(self) -> dict[str, Any]:
        return {
            **self._audit.state(),
            "num_samples": len(self._data),
            "num_held_out": self._data.num_held_out,
            "num_never_usable": self._batches.usable.num_never_usable,
            "nonfinite_steps": self._done.nonfinite_steps,
        }


class _LogWindow:
    """Means since the last line of the log."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._rate = 0.0
        self._since = time.monotonic()

    def add(self, loss: float, gradient_norm: float, rate: float) -> None:
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self._rate = rate

    def flush(self) -> dict[str, float]:
        if not self._losses:
            return {}
        count, now = len(self._losses), time.monotonic()
        values = {
            "loss": sum(self._losses) / count,
            "gradient_norm": sum(self._norms) / count,
            "learning_rate": self._rate,
            "seconds_per_step": (now - self._since) / count,
        }
        self._losses, self._norms, self._since = [], [], now
        return values


def _share(batch_size: int, accelerator: Accelerator) -> range:
    """Return the positions of a global batch that this process trains on."""
    count = accelerator.num_processes
    if batch_size % count:
        raise BadInput(f"batch_size {batch_size} is no multiple of the {count} processes")
    size = batch_size // count
    return range(accelerator.process_index * size, (accelerator.process_index + 1) * size)


def _accelerator(run: RunRecord) -> Accelerator:
    logging_to = "tensorboard" if run.config.tensorboard else None
    accelerator = Accelerator(
        # Said aloud: without it, processes on a machine without a GPU would not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.config.precision,
        log_with=logging_to,
        project_dir=run.folder,
    )
    if logging_to:
        accelerator.init_trackers("tensorboard")
    return accelerator

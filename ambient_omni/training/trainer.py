"""Training: obeys the annotation table, resumes exactly, selects by held-out loss."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from ambient_omni.data.batches import Batch
from ambient_omni.data.loaders import make_loader
from ambient_omni.data.training_data import Pinned
from ambient_omni.evaluation import keep_heldout
from ambient_omni.interrupts import StopRequest
from ambient_omni.progress import progress
from ambient_omni.training import checkpoints, distribution
from ambient_omni.training.audit import Audit, Audited
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.engine import Engine
from ambient_omni.training.evaluating import Evaluator
from ambient_omni.training.opening import open_run
from ambient_omni.training.reporting import Reporter
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.saving import Progress, Saver
from schemas.errors import TrainingFailed
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
        BadInput: the machine cannot run it so, or parts do not fit each other.
        CheckpointRefused: the run has checkpoints, and none of them can be used.
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
    accelerator = distribution.make_accelerator(config, run.folder)
    # A commit between two processes' starts must not give them different tables.
    run = replace(run, versions=distribution.of_main(run.versions, accelerator))
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
            distribution.end(accelerator)
    return run.run_id


class Trainer:
    """One run in one process of possibly several. `fit` is the loop; the rest is called by it."""

    def __init__(self, run: RunRecord, accelerator: Accelerator, *, show: bool) -> None:
        config = self._config = run.config
        self._run, self._accelerator, self._show = run, accelerator, show
        self._positions = distribution.share(config.batch_size, accelerator)
        opened = open_run(run)
        distribution.require_same(lambda: f"{run.run_id} {opened.fingerprint()}", accelerator)
        self._data, self._batches = opened.data, opened.batches
        data, model = opened.data, opened.model
        self._pinned = Pinned(
            model.parameterisation.sigma_data, data.label_names, data.source_names
        )
        self._audit = Audit(Audited.of(data, config.kappa, soft=config.sampling.soft_floors))
        self._audit_report: dict[str, Any] = {}
        self._engine = Engine(model, config, accelerator)
        parents = {
            **run.parents,
            "label_names": list(data.label_names),
            "sigma_data": self._pinned.sigma_data,
        }
        self._saver = Saver(run, accelerator, parents)
        self._reporter = Reporter(run, accelerator)
        self._evaluator = Evaluator(run, accelerator, opened.images, data.label_names)
        self._done = Progress()

    def fit(self) -> None:
        """Train from the newest good checkpoint to the end of the budget."""
        self._begin()
        config, done, size = self._config, self._done, self._config.batch_size
        batches = make_loader(
            self._batches,
            config.loader,
            start_step=done.step,
            num_steps=config.num_steps,
            positions=self._positions,
        )
        votes = distribution.Votes(self._accelerator)
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
            for batch in batches:
                self._step(batch)
                bar.update(size)
                last = done.step == config.num_steps
                if last or self._due(config.log_every_images):
                    self._reporter.write_means(done.step)
                stopping = votes.any(stop.requested)
                with self._reporter.aside():
                    if config.power_ema.sigma_rels and (
                        last or self._due(config.power_ema.snapshot_every_images)
                    ):
                        self._saver.snapshot(self._engine, done)
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
            audit=self._full_audit(),
        )

    @property
    def _images_seen(self) -> int:
        return self._done.step * self._config.batch_size

    def _begin(self) -> None:
        self._done = self._saver.resume(self._engine, self._audit, self._reporter)
        if self._accelerator.is_main_process:
            self._run.begin(self._pinned)
            self._run.forget_metrics_after(self._done.step)
            distribution.start_trackers(
                self._accelerator,
                self._config,
                self._run.run_id,
                self._run.folder,
                self._done.step,
            )
        self.record("running")

    def _step(self, batch: Batch) -> None:
        result = self._engine.step(self._done.step, batch)
        # What was trained on, as it came in the batch: not what a loader was asked for.
        self._audit.add(batch.index.numpy(), batch.sigma.double().numpy(), batch.num_outside_buffer)
        self._done.step += 1
        if result.finite:
            self._reporter.add(result)
        else:
            self._count_nonfinite(batch)

    def _count_nonfinite(self, batch: Batch) -> None:
        done = self._done
        done.nonfinite_steps += 1
        _LOG.warning("step %d skipped: the loss or its gradient is not finite", done.step - 1)
        if done.nonfinite_steps > self._config.max_nonfinite_steps:
            raise TrainingFailed(
                f"{done.nonfinite_steps} steps without a finite loss, the last one step "
                f"{done.step - 1} (first sample_row {int(batch.sample_rows[0])}): lower "
                "optimizer.learning_rate or look at those images"
            )

    def _due(self, every_images: int) -> bool:
        every = max(1, every_images // self._config.batch_size)
        return self._done.step % every == 0

    def _evaluate_and_save(self) -> None:
        name = f"step-{self._done.step:08d}"
        loss = self._evaluator.held_out(self._engine, name)
        if loss is not None:
            # What a level that is never trained says chooses nothing.
            total = loss.total_within(*self._config.prior.support)
            self._reporter.write(
                self._done.step, {"held_out_total": total}, held_out_weighted=loss.weighted
            )
            # A loss that is not a number is never best.
            if total < self._done.best_loss:
                self._done.best, self._done.best_loss = name, total
        if self._config.samples.each_evaluation:
            self._evaluator.save_samples(self._engine, f"samples-{self._done.step:08d}.png")
        self._save()
        self.record("running")

    def _save(self) -> None:
        self._audit_report = self._saver.save(self._engine, self._audit, self._reporter, self._done)

    def _stopped(self) -> None:
        self.record("interrupted")
        raise TrainingStopped(
            f"training {self._config.name} stopped after {self._images_seen} of "
            f"{self._config.num_steps * self._config.batch_size} images and saved; run the same "
            "command again to go on"
        )

    def _finish(self) -> None:
        """Select the best checkpoint, measure and sample it, and declare the run finished."""
        if distribution.of_main(self._done.best, self._accelerator) is None:
            # The best one was lost after the last step; then the last one is what there is.
            self._evaluate_and_save()
        best = distribution.of_main(self._done.best, self._accelerator)
        if best is None:
            raise TrainingFailed(
                "the held-out loss was never finite: lower optimizer.learning_rate"
            )
        path = self._run.checkpoints / best
        self._engine.load_average(checkpoints.load(path))
        loss = self._evaluator.held_out(self._engine, best)
        self._evaluator.save_samples(self._engine, "samples.png")
        if loss is None or not self._accelerator.is_main_process:
            return
        keep_heldout(self._run.folder, loss)
        self._run.write(
            "finished",
            num_images_seen=self._images_seen,
            checkpoint=path,
            metrics=loss.model_dump(exclude={"per_image", "sample_rows"}),
            audit=self._full_audit(),
        )

    def _full_audit(self) -> dict[str, Any]:
        # Several processes know of each other's counts what the last checkpoint says.
        alone = self._accelerator.num_processes == 1 or not self._audit_report
        counted = self._audit.report() if alone else self._audit_report
        return {
            **counted,
            "objective": self._config.objective,
            "num_samples": len(self._data),
            "num_held_out": self._data.num_held_out,
            "num_never_usable": self._batches.usable.num_never_usable,
            "num_never_drawn": self._batches.num_unreachable,
            "nonfinite_steps": self._done.nonfinite_steps,
        }

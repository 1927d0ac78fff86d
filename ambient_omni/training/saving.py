"""Checkpoints and snapshots of a run: what is saved when, and what a run goes on from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ambient_omni.training import checkpoints, distribution
from ambient_omni.training.audit import Audit, merged
from ambient_omni.training.checkpoints import Checkpoint
from ambient_omni.training.engine import Engine, power_group
from ambient_omni.training.posthoc import gamma_of_sigma_rel
from ambient_omni.training.reporting import Reporter
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.seen import SeenSamples
from schemas.errors import CheckpointRefused
from schemas.ids import canonical_hash

_LOG = logging.getLogger(__name__)

SEEN_GROUP = "seen"
_EXPECTED = ("noise_space", "run_id", "label_names", "sigma_data")


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    nonfinite_steps: int = 0
    best: str | None = None
    best_loss: float = math.inf


class Saver:
    """Saves and restores an engine, its audit and its progress.

    Args:
        run: whose folder it is.
        accelerator: the processes; all of them call every method, the main one writes.
        parents: what every checkpoint descends from.
    """

    def __init__(
        self, run: RunRecord, accelerator: Accelerator, parents: Mapping[str, Any]
    ) -> None:
        self._run, self._accelerator, self._parents = run, accelerator, dict(parents)

    def save(
        self, engine: Engine, audit: Audit, reporter: Reporter, done: Progress
    ) -> dict[str, Any]:
        """Write a checkpoint, prune older ones, and return the audit of the run so far."""
        groups, state = engine.state()
        reported = reporter.state()
        counts, seen = self._collect(audit)
        if self._accelerator.is_main_process:
            found = {
                "nonfinite_steps": done.nonfinite_steps,
                "best": done.best,
                "best_loss": done.best_loss if done.best is not None else None,
                "audit": counts,
                "reporter": reported,
                "engine": state,
            }
            groups[SEEN_GROUP] = seen.tensors()
            folder = self._run.checkpoints
            checkpoints.save(folder, done.step, groups, self._parents, found)
            # Later ones were refused when the run went on from an earlier one.
            good = [
                p.name for p in checkpoints.steps(folder) if checkpoints.step_of(p) <= done.step
            ]
            keep = good[: self._run.config.keep_checkpoints]
            checkpoints.prune(folder, [*keep, done.best or ""])
        self._accelerator.wait_for_everyone()
        return audit.report(counts, seen)

    def snapshot(self, engine: Engine, done: Progress) -> None:
        """Write the power-function averages, for averages that are made afterwards."""
        groups = engine.power_tensors()
        if not self._accelerator.is_main_process:
            return
        kind = getattr(torch, self._run.config.power_ema.snapshot_precision)
        small = {
            group: {name: tensor.to(kind) for name, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
        images = done.step * self._run.config.batch_size
        profiles = {
            power_group(sigma_rel): {"gamma": gamma_of_sigma_rel(sigma_rel), "time": images}
            for sigma_rel in engine.power
        }
        state = {"profiles": profiles}
        checkpoints.save(self._run.snapshots, done.step, small, self._parents, state)

    def resume(self, engine: Engine, audit: Audit, reporter: Reporter) -> Progress:
        """Go on from the newest checkpoint that is whole, and say which ones were not.

        Which ones there are, the main process says; all processes go on from the same one, or from
        none. Else each would train other weights on other steps, and average the gradients.

        Raises:
            CheckpointRefused: there are checkpoints and none of them can be used by all processes.
        """
        here = [path.name for path in checkpoints.steps(self._run.checkpoints)]
        names = distribution.of_main(here, self._accelerator)
        expect = {name: self._parents[name] for name in _EXPECTED}
        refused = ""
        for name in names:
            found, said = self._loaded(self._run.checkpoints / name, expect, engine)
            refused = distribution.first_of(said, self._accelerator) or self._differing(found)
            if found is not None and not refused:
                _LOG.info("going on from %s", name)
                reporter.restore(found.state["reporter"])
                return self._restore(found, audit)
            _LOG.warning("%s; trying the one before", refused)
        if names:
            raise CheckpointRefused(
                f"none of the {len(names)} checkpoints in {self._run.checkpoints} can be used, the "
                f"oldest because: {refused}; remove that folder to begin anew"
            )
        return Progress()

    def _loaded(
        self, path: Path, expect: Mapping[str, Any], engine: Engine
    ) -> tuple[Checkpoint | None, str]:
        """Return a checkpoint that was put into the engine, or why it was not."""
        try:
            found = checkpoints.load(path, expect)
            engine.load(found)
        except CheckpointRefused as error:
            return None, str(error)
        return found, ""

    def _differing(self, found: Checkpoint | None) -> str:
        """Say that processes read different checkpoints of one name; empty if they did not."""
        hashes = [] if found is None else [canonical_hash([found.step, found.state])]
        everyone = distribution.all_of(hashes, self._accelerator)
        if len(set(everyone)) == 1:
            return ""
        return f"processes do not find the same checkpoints in {self._run.checkpoints}"

    def _restore(self, found: Checkpoint, audit: Audit) -> Progress:
        # One process goes on with the counts of all; together they stay right.
        if self._accelerator.is_main_process:
            audit.restore(found.state["audit"])
            audit.seen.restore(found.tensors(SEEN_GROUP))
        done = Progress(found.step, found.state["nonfinite_steps"])
        best = found.state["best"]
        if best is not None and self._is_good(self._run.checkpoints / best, found):
            done.best, done.best_loss = best, found.state["best_loss"]
        return done

    def _is_good(self, best: Path, found: Checkpoint) -> bool:
        """Say whether the best checkpoint can be used; the main process alone has to know."""
        if not self._accelerator.is_main_process or best == found.path:
            return True
        try:
            checkpoints.load(best)
        except CheckpointRefused as error:
            _LOG.warning("%s; it was the best one, a later one is going to be selected", error)
            return False
        return True

    def _collect(self, audit: Audit) -> tuple[dict[str, Any], SeenSamples]:
        """Return the counts of all processes, and what any of them saw."""
        if self._accelerator.num_processes == 1:
            return audit.state(), audit.seen
        seen, parts = SeenSamples(), gather_object([(audit.state(), audit.seen)])
        for _, other in parts:
            seen.unite(other)
        return merged(state for state, _ in parts), seen

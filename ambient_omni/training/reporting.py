"""What a run says while it trains: lines of metrics.jsonl, and the trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from ambient_omni.training.engine import StepResult
from ambient_omni.training.run_record import RunRecord


class Reporter:
    """Means since the last line, over steps and processes; written by the main one."""

    def __init__(self, run: RunRecord, accelerator: Accelerator) -> None:
        self._run, self._accelerator = run, accelerator
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._rate = 0.0
        self._num_timed = 0  # without those of before a resume, whose time nobody knows
        self._since = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Take in a step that was finite."""
        self._losses.append(result.loss)
        self._num_timed += 1
        # The gradient is shared: its norm is the same everywhere. One that overflowed under fp16,
        # in a step that the scaler skips, is no number of a mean.
        if math.isfinite(result.gradient_norm):
            self._norms.append(result.gradient_norm)
        self._rate = result.learning_rate

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do what is no step, such as evaluating and saving: its time is none of the steps'."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def write_means(self, step: int) -> None:
        """Write a line of means, if there was any finite step. Every process has to call it."""
        count, now = len(self._losses), time.monotonic()
        if not count:
            return
        values = {
            "loss": sum(self._over_processes()) / count,
            **self._norm_values(),
            "learning_rate": self._rate,
        }
        if self._num_timed:
            values["seconds_per_step"] = (now - self._since) / self._num_timed
        self._losses, self._norms, self._since, self._num_timed = [], [], now, 0
        self.write(step, values)

    def write(self, step: int, values: Mapping[str, float], **lists: list[float]) -> None:
        """Write a line, from the main process; trackers get the numbers, not the lists."""
        if not self._accelerator.is_main_process:
            return
        images = step * self._run.config.batch_size
        self._run.log({"step": step, "images": images, **values, **lists})
        self._accelerator.log(dict(values), step=step)

    def state(self) -> dict[str, list[float]]:
        """Return the steps since the last line, which a checkpoint may fall between."""
        return {"losses": self._over_processes(), "norms": list(self._norms)}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Go on from what `state` returned, in every process."""
        self._losses, self._norms = list(state["losses"]), list(state["norms"])

    def _norm_values(self) -> dict[str, float]:
        norms = self._norms
        if not norms:
            return {}
        return {"gradient_norm": sum(norms) / len(norms), "gradient_norm_max": max(norms)}

    def _over_processes(self) -> list[float]:
        if self._accelerator.num_processes == 1 or not self._losses:
            return list(self._losses)
        here = torch.tensor(self._losses, device=self._accelerator.device)
        mean: list[float] = self._accelerator.reduce(here, "mean").tolist()
        return mean

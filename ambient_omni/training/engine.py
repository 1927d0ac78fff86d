"""One step of training: batch in, weights and averages moved. No disks, no tables, no clocks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ambient_omni import rng
from ambient_omni.data.batches import Batch
from ambient_omni.models.conditions import Condition
from ambient_omni.models.model import Model
from ambient_omni.models.objectives import denoising_pair, squared_error
from ambient_omni.training import checkpoints, distribution, posthoc
from ambient_omni.training.averages import WeightAverage
from ambient_omni.training.checkpoints import Checkpoint, Tensors
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.optimization import ema_decay, learning_rate, make_optimizer


class TrainingObjective(nn.Module):
    """The loss of each image, with everything that learns inside: what processes share.

    Args:
        model: its denoiser and its loss weighting.
        compile_backend: of torch.compile; None = the denoiser as it is.
    """

    def __init__(self, model: Model, compile_backend: str | None = None) -> None:
        super().__init__()
        self.denoiser = model.denoiser
        self.loss_weighting = model.loss_weighting
        self._denoise: Callable[..., Tensor] = self._as_it_is
        if compile_backend is not None:
            # The training call alone: evaluation and sampling come in batches of other sizes.
            self._denoise = torch.compile(self._as_it_is, backend=compile_backend)

    def forward(
        self, x_t: Tensor, target: Tensor, sigma: Tensor, condition: Condition | None
    ) -> Tensor:
        """Return (B,) of x_t and target (B, C, H, W) and σ (B,)."""
        predicted = self._denoise(x_t, sigma, condition)
        loss: Tensor = self.loss_weighting(sigma, squared_error(predicted, target))
        return loss

    def _as_it_is(self, x_t: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        predicted: Tensor = self.denoiser(x_t, sigma, condition)
        return predicted


@dataclass(frozen=True)
class StepResult:
    """What a step did: mean loss of this process's images, gradient norm before clipping."""

    loss: float
    gradient_norm: float
    learning_rate: float
    finite: bool


class Engine:
    """Weights, optimizer and averages of a run, and the step that moves them.

    Args:
        model: what is trained; moved to the accelerator's device.
        config: how.
        accelerator: processes, device and precision.
    """

    def __init__(self, model: Model, config: TrainConfig, accelerator: Accelerator) -> None:
        self.model = model
        self._config, self._accelerator = config, accelerator
        backend = config.compile_backend if config.compile else None
        self._objective = TrainingObjective(model, backend)
        self._prepared = distribution.distribute(
            self._objective, accelerator, sharded=config.distribution == "fsdp"
        )
        if model.conditioner is not None:
            model.conditioner.to(accelerator.device)
        learning = self._objective.named_parameters()
        self._learning = {name: p for name, p in learning if p.requires_grad}
        self._optimizer: Any = accelerator.prepare_optimizer(
            make_optimizer(self._learning.values(), config.optimizer)
        )
        self.ema = WeightAverage(model.trainable())
        self.power: dict[float, WeightAverage] = {
            sigma_rel: WeightAverage(model.trainable()) for sigma_rel in config.power_ema.sigma_rels
        }
        self._has_dropout = any(
            isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
            for part in model.denoiser.modules()
        )
        self._objective.train()
        # DDP groups gradients anew after the first step, and sums in that order: a run that
        # resumes would differ in its first step. One step for nothing makes all steps alike.
        self._settled = accelerator.num_processes == 1 or config.distribution == "fsdp"

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are spread over processes, so that all have to evaluate together."""
        return self._config.distribution == "fsdp" and self._accelerator.num_processes > 1

    def step(self, number: int, batch: Batch) -> StepResult:
        """Train on this process's share of step `number`; all processes step together."""
        config, accelerator = self._config, self._accelerator
        before, seen = number * config.batch_size, (number + 1) * config.batch_size
        rate = learning_rate(config.optimizer, before, config.num_images)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if not self._settled:
            self._backward(number, batch)
            self._optimizer.zero_grad()
            self._settled = True
        loss = self._backward(number, batch)
        norm = accelerator.clip_grad_norm_(self._learning.values(), config.optimizer.gradient_clip)
        # The one wait for the device in a step. Processes share the gradient, so they agree on its
        # norm without asking each other. Under fp16 the gradient scaler skips overflows by itself
        # and has to see every step.
        values = torch.stack([loss, distribution.whole(norm).to(loss)]).tolist()
        scaled = config.precision == "fp16"
        finite = self._is_finite_everywhere(loss) if scaled else math.isfinite(values[1])
        if finite or scaled:
            self._optimizer.step()
        self._optimizer.zero_grad()
        self.ema.update(ema_decay(config.ema, seen, config.batch_size))
        for sigma_rel, average in self.power.items():
            gamma = posthoc.gamma_of_sigma_rel(sigma_rel)
            average.update(posthoc.power_decay(gamma, seen, config.batch_size))
        return StepResult(values[0], values[1], rate, finite)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Model]:
        """Run a block with the EMA in the model, in evaluation mode."""
        self._objective.eval()
        try:
            with self.ema.applied():
                yield self.model
        finally:
            self._objective.train()

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Return what a checkpoint holds: groups of whole tensors, JSON values.

        All processes call it; the main one gets the tensors.
        """
        weights = self._gather(self.model.weights())
        groups = {
            "model": weights,
            "ema": {**weights, **self._gather(self.ema.tensors)},
            "optimizer": self._gather(self._optimizer_tensors()),
        }
        groups |= self.power_tensors()
        if any(True for _ in self.model.loss_weighting.parameters()):
            state = self.model.loss_weighting.state_dict()
            groups["loss_weighting"] = self._gather(state)
        scaler = self._accelerator.scaler
        return groups, {} if scaler is None else {"scaler": scaler.state_dict()}

    def power_tensors(self) -> dict[str, Tensors]:
        """Return the power-function averages by group; see `state`."""
        if not self.power:
            return {}
        fixed = {n: t for n, t in self.model.weights().items() if n not in self.ema.tensors}
        return {
            power_group(sigma_rel): self._gather({**fixed, **average.tensors})
            for sigma_rel, average in self.power.items()
        }

    def load_average(self, found: Checkpoint) -> None:
        """Put a checkpoint's averaged weights in the place of the present ones.

        Raises:
            CheckpointRefused: they are missing or damaged, or of another network.
        """
        target, tensors = {**self.model.weights(), **self.ema.tensors}, found.tensors("ema")
        checkpoints.require_fit(tensors, target, found.path)
        _copy(target, tensors)

    def load(self, found: Checkpoint) -> None:
        """Go on from what `state` returned. All processes call it; nothing changes on refusal.

        Raises:
            CheckpointRefused: a group is missing or damaged, or of another network.
        """
        weights = self.model.weights()
        targets = {"model": weights, "ema": {**weights, **self.ema.tensors}}
        for sigma_rel, average in self.power.items():
            targets[power_group(sigma_rel)] = {**weights, **average.tensors}
        if any(True for _ in self.model.loss_weighting.parameters()):
            targets["loss_weighting"] = self.model.loss_weighting.state_dict()
        tensors = {group: found.tensors(group) for group in targets}
        for group, target in targets.items():
            checkpoints.require_fit(tensors[group], target, found.path)
        optimizer = found.tensors("optimizer")
        for group, target in targets.items():
            _copy(target, tensors[group])
        # Averages hold what is not trained as it is, so the order of copying does not matter.
        self._load_optimizer(optimizer)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(found.state["engine"]["scaler"])

    def _backward(self, number: int, batch: Batch) -> Tensor:
        """Add up the gradients of the batch; return its mean loss, detached, 0-dimensional."""
        device = self._accelerator.device
        size = self._config.micro_batch_size or len(batch)
        starts = range(0, len(batch), size)
        total = torch.zeros((), device=device)
        for place, start in enumerate(starts):
            part = _rows(batch, start, start + size).to(device)
            last = place == len(starts) - 1
            with (
                distribution.synchronised(self._prepared, self._accelerator, last=last),
                self._dropout(number, place),
            ):
                loss = self._loss(part) * (len(part) / len(batch))
                self._accelerator.backward(loss)
            total += loss.detach()
        return total

    def _is_finite_everywhere(self, loss: Tensor) -> bool:
        return math.isfinite(float(self._accelerator.reduce(loss.clone(), "sum")))

    def _loss(self, batch: Batch) -> Tensor:
        pair = denoising_pair(batch.x0, batch.sigma, batch.hidden, batch.fresh, batch.fixed)
        loss: Tensor = self._prepared(pair.x_t, pair.target, batch.sigma, self._condition(batch))
        return loss.mean()

    def _condition(self, batch: Batch) -> Condition | None:
        if self.model.conditioner is None:
            return None
        with torch.no_grad():
            return self.model.conditioner.encode(
                labels=batch.labels, captions=batch.captions, drop=batch.drop_condition
            )

    def _dropout(self, number: int, part: int) -> contextlib.AbstractContextManager[None]:
        if not self._has_dropout:
            return contextlib.nullcontext()
        rank = self._accelerator.process_index
        return rng.torch_seeded(self._config.seed, "dropout", number, rank, part)

    def _gather(self, tensors: Mapping[str, Tensor]) -> Tensors:
        return distribution.gather(tensors, keep=self._accelerator.is_main_process)

    def _optimizer_tensors(self) -> Tensors:
        return {
            f"{name}.{field}": torch.as_tensor(value)
            for name, parameter in self._learning.items()
            for field, value in self._optimizer.state.get(parameter, {}).items()
        }

    def _load_optimizer(self, tensors: Tensors) -> None:
        self._optimizer.state.clear()
        for name, tensor in tensors.items():
            of, field = name.rsplit(".", 1)
            parameter = self._learning[of]
            # A moment is sharded as its parameter; the count of steps is one number.
            here = (
                distribution.like(tensor, parameter)
                if tensor.shape == parameter.shape and field != "step"
                else tensor.to(self._accelerator.device)
            )
            self._optimizer.state[parameter][field] = here


def power_group(sigma_rel: float) -> str:
    """Return the name of a power-function average's group of tensors."""
    return f"power-{sigma_rel:g}"


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], tensors: Tensors) -> None:
    for name, target in targets.items():
        target.copy_(distribution.like(tensors[name], target))


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    """Return some images of a batch; the batch itself where they are all."""
    if start == 0 and stop >= len(batch):
        return batch
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    per_image: dict[str, Any] = {n: v for n, v in parts.items() if isinstance(v, Tensor | tuple)}
    return replace(batch, **{name: value[start:stop] for name, value in per_image.items()})

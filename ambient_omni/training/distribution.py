"""Processes and devices: what accelerate prepares, sharding, and tensors that span processes."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ambient_omni.training.config import TrainConfig
from schemas.errors import BadInput

Value = TypeVar("Value")

_LONGEST_WAIT = timedelta(hours=1)
"""Of processes for each other; a lost machine is noticed after it. NCCL's own is 10 minutes."""


_GROUPS: list[Any] = []
"""Process groups of trainings that ended in this process; see `end`."""


def make_accelerator(config: TrainConfig, folder: Path | None = None) -> Accelerator:
    """Return the accelerator of a run, its trackers checked but not started.

    Args:
        config: precision and trackers.
        folder: where trackers write; None = no trackers.

    Raises:
        BadInput: fp16 without a GPU, bf16 on one that has none, a tracker that is not installed, or
            accelerate's own settings ask for another way to share the weights.
    """
    _require_own_sharding()
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and config.precision == "fp16":
        raise BadInput("precision fp16 needs a GPU: use bf16, or no, on this machine")
    trackers = list(config.trackers) if folder is not None else []
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise BadInput(
                f"the tracker {name} is not installed: pip install 'ambient-omni[{name}]', or "
                "take it out of `trackers`"
            )
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    # A second run in one process may want another precision; accelerate keeps the first's.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        return _accelerator(config, folder, trackers, on_cpu)
    except ValueError as error:
        raise BadInput(
            f"this machine cannot train with precision {config.precision}: {error}"
        ) from error


def _accelerator(
    config: TrainConfig, folder: Path | None, trackers: Sequence[str], on_cpu: bool
) -> Accelerator:
    return Accelerator(
        # Said aloud: without it, processes on a machine without a GPU would not find each other.
        cpu=on_cpu,
        mixed_precision=config.precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        # `accelerate launch` sets defaults for both, under which a loss would silently be divided
        # and all of the network compiled; the run's own settings say what is wanted.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=[
            # Buffers are constants here; gradients need no second copy.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            # The main process draws samples and writes checkpoints while the others wait.
            InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
        ],
    )


def _require_own_sharding() -> None:
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise BadInput(
                f"accelerate is set to use {name}: launch without it (torchrun, or `accelerate "
                "launch --multi_gpu`), and set distribution to fsdp to shard the weights"
            )


def start_trackers(
    accelerator: Accelerator, config: TrainConfig, run_id: str, folder: Path, step: int
) -> None:
    """Start the trackers that the accelerator was made with; a resumed run goes on in its own.

    Args:
        accelerator: made with `folder`.
        config: names the trackers.
        run_id: of the run.
        folder: of the run.
        step: that it goes on from; what a killed process tracked after it is done again.
    """
    if not config.trackers:
        return
    settings = {
        "wandb": {
            "id": run_id,
            "name": config.name,
            "resume": "allow",
            "dir": str(folder),
            "config": config.identity(),
        },
        "tensorboard": {"purge_step": step + 1},
    }
    accelerator.init_trackers(config.tracker_project, init_kwargs=settings)


def end(accelerator: Accelerator) -> None:
    """Stop the trackers, and leave the processes that trained together.

    The group is kept as an object, and freed with the interpreter. Otherwise a replica's reducer,
    which goes later than the group, could be its last owner; that frees it while holding Python's
    lock, for which gloo's thread, which is joined there, waits if it just ended a collective.
    """
    if torch.distributed.is_initialized():
        _GROUPS.append(torch.distributed.group.WORLD)
    accelerator.end_training()


def share(batch_size: int, accelerator: Accelerator) -> range:
    """Return the positions of a global batch that this process trains on.

    Raises:
        BadInput: the processes cannot share it evenly.
    """
    count = accelerator.num_processes
    if batch_size % count:
        raise BadInput(f"batch_size {batch_size} is no multiple of the {count} processes")
    size = batch_size // count
    return range(accelerator.process_index * size, (accelerator.process_index + 1) * size)


def distribute(module: nn.Module, accelerator: Accelerator, *, sharded: bool) -> nn.Module:
    """Put a module on its device under the run's precision, replicated or sharded.

    Sharded means torch's `fully_shard` (FSDP2), which accelerate's plugin calls too, but on GPUs
    alone; called here it is the same on a CPU. Autocast sets the precision in both cases, so that
    σ stays float32 on its way to the preconditioning.
    """
    if not sharded or accelerator.num_processes == 1:
        return cast(nn.Module, accelerator.prepare_model(module))
    module.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for unit in [*_units(module), *module.children(), module]:
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    # As for evaluation: accelerate adds autocast, and no replica around it.
    return cast(nn.Module, accelerator.prepare_model(module, evaluation_mode=True))


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what is gathered together: the elements of the outermost lists (blocks)."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            # diffusers keeps a place for attention that a block has not.
            yield from (block for block in child if block is not None)
        else:
            yield from _units(child)


@contextlib.contextmanager
def synchronised(module: nn.Module, accelerator: Accelerator, *, last: bool) -> Iterator[None]:
    """Run one of several backward passes; gradients are shared between processes in the last."""
    # Sharding changes the class of a module, so it needs no unwrapping (which would undo autocast).
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
        return
    with contextlib.nullcontext() if last else accelerator.no_sync(module):
        yield


class Votes:
    """Asks after every step whether any process wants to stop, without making a step wait.

    With several processes an answer is that of the step before.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._asked: tuple[Tensor, Any] | None = None

    def any(self, flag: bool) -> bool:
        """Give one's vote, and return whether any process had given its own."""
        if self._accelerator.num_processes == 1:
            return flag
        answer = False
        if self._asked is not None:
            votes, work = self._asked
            work.wait()
            answer = bool(votes > 0)
        votes = torch.tensor(float(flag), device=self._accelerator.device)
        self._asked = votes, torch.distributed.all_reduce(votes, async_op=True)
        return answer


def of_main(value: Value, accelerator: Accelerator) -> Value:
    """Return the main process's value in every process."""
    if accelerator.num_processes == 1:
        return value
    found: Value = broadcast_object_list([value])[0]
    return found


def all_of(values: list[Value], accelerator: Accelerator) -> list[Value]:
    """Return the values of all processes, in their order. Every process has to call it."""
    if accelerator.num_processes == 1:
        return values
    found: list[Value] = gather_object(values)
    return found


def first_of(said: str, accelerator: Accelerator) -> str:
    """Return what the first process says that says anything. Every process has to call it."""
    everyone = all_of([said], accelerator)
    spoke = [(rank, words) for rank, words in enumerate(everyone) if words]
    if not spoke:
        return ""
    rank, words = spoke[0]
    return words if len(everyone) == 1 else f"process {rank}: {words}"


def require_same(fingerprint: Callable[[], str], accelerator: Accelerator) -> None:
    """Check that all processes opened the same data. Every process has to call it.

    Args:
        fingerprint: computes the data's; asked for only where there are several processes.
        accelerator: the processes.

    Raises:
        BadInput: in every process, if one of them opened other data.
    """
    if accelerator.num_processes == 1:
        return
    found = all_of([fingerprint()], accelerator)
    odd = [rank for rank, other in enumerate(found) if other != found[0]]
    if odd:
        raise BadInput(
            f"process {odd[0]} opened other samples or levels than process 0: something was taken "
            "down meanwhile, or the root is not the same folder everywhere; start again"
        )


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded. Every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return whole tensors on the CPU. Every process has to call it.

    Args:
        tensors: some may be sharded.
        keep: False where they are not needed: then no more than one is whole at a time.
    """
    found = {}
    for name, tensor in tensors.items():
        here = whole(tensor.detach())
        if keep:
            found[name] = here.cpu()
    return found


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor on the device of `target`, sharded as it; no process waits."""
    moved = tensor.to(target.device, target.dtype)
    if not isinstance(target, DTensor):
        return moved
    # Every process read the same file: none has to send it to the others.
    sharded: Any = distribute_tensor(
        moved, target.device_mesh, target.placements, src_data_rank=None
    )
    return cast(Tensor, sharded)

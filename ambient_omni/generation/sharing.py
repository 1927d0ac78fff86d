"""Several processes that generate side by side: torchrun or `accelerate launch` started them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from schemas.errors import BadInput

# The last shard of one process may take hours longer than that of another.
_LONGEST_WAIT = timedelta(days=7)


@contextlib.contextmanager
def processes() -> Iterator[PartialState]:
    """Yield who is here: one process, or those that were launched together."""
    # Said aloud: without it, processes on a machine without a GPU would not find each other.
    on_cpu = not torch.accelerator.is_available()
    here = PartialState(cpu=on_cpu, timeout=_LONGEST_WAIT)
    yield here
    # Those that others wait for have to be through before anybody leaves.
    here.wait_for_everyone()
    if here.num_processes > 1:
        here.destroy_process_group()


def share(runs: Sequence[range], size: int | None, here: PartialState) -> list[range]:
    """Return this process's share of runs of numbers.

    Args:
        runs: what is to be made.
        size: a run may be cut into so many at a time, which is how one process would take them, so
            that every image comes out of the same batch and is the same to the bit; None: whole.
        here: which process of how many.
    """
    parts = [
        range(start, min(start + (size or len(run)), run.stop))
        for run in runs
        for start in range(run.start, run.stop, size or len(run))
    ]
    return list(itertools.islice(parts, here.process_index, None, here.num_processes))


def first_in_main(do: Callable[[], None], here: PartialState) -> None:
    """Do something in the main process alone, before the others go on.

    Raises:
        BadInput: in every process, where it was raised in the main one.
    """
    refused: list[str | None] = [None]
    if here.is_main_process:
        try:
            do()
        except BadInput as error:
            refused = [str(error)]
    if here.num_processes > 1:
        broadcast_object_list(refused)
    if refused[0] is not None:
        raise BadInput(refused[0])

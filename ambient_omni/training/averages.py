"""Moving averages of the weights, kept beside them and swapped in for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """A moving average of some parameters, by name.

    Under sharding each process keeps the average of its own shards: averaging is elementwise.

    Args:
        parameters: what is averaged; the average starts as a copy of them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._live: list[Tensor] = [parameter.detach() for parameter in parameters.values()]
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in parameters.items()
        }
        self._here = [local(tensor) for tensor in self.tensors.values()]
        self._there = [local(tensor) for tensor in self._live]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the parameters: average = decay · average + (1 - decay) · parameters."""
        torch._foreach_lerp_(self._here, self._there, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block with the averages in the place of the parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values, not storages: whoever holds a parameter (optimizer, compiled graph) keeps it. One
        # tensor at a time needs no second copy of the network.
        for average, live in zip(self._here, self._there, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor, or the tensor; it shares the storage."""
    sharded: Any = tensor
    return sharded.to_local() if hasattr(tensor, "to_local") else tensor

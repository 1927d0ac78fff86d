"""Solvers of the probability-flow ODE dx/dσ = (x - D(x; σ)) / σ, from a high level down to 0.

B batch, C channels, H height, W width. All of them work on x_t = x_0 + σ z, whatever the network
predicts: a parameterisation is a way to write D. On the same levels `euler` makes the steps of
DDIM, of rectified flow's Euler and of EDM's Euler: these solve the same ODE in scaled variables,
and a step that holds D fixed is a line in each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Estimates x_0 (B, C, H, W) from x_t (B, C, H, W) and σ (B,)."""

Solver = Callable[[Denoise, Tensor, Tensor], Tensor]
"""`(denoise, x at the first level (B, C, H, W), levels (n,) descending, positive) -> x_0`."""


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, levels: Tensor) -> Tensor:
    """Solve with first-order steps, one evaluation each.

    x_s = D + (s / σ) (x - D). Source: DDIM (arXiv 2010.02502), equation 12 with η = 0, in σ.
    """
    for now, after in _steps(levels, x):
        x0 = denoise(x, now.expand(len(x)))
        x = x0 + after / now * (x - x0)
    return x


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, levels: Tensor) -> Tensor:
    """Solve with second-order steps, two evaluations each but for the last.

    Source: Karras et al. 2022 (EDM), algorithm 1.
    """
    for now, after in _steps(levels, x):
        slope = (x - denoise(x, now.expand(len(x)))) / now
        ahead: Tensor = x + (after - now) * slope
        if after > 0:
            slope_after = (ahead - denoise(ahead, after.expand(len(x)))) / after
            ahead = x + (after - now) * (slope + slope_after) / 2
        x = ahead
    return x


@torch.no_grad()
def dpm_solver_2m(denoise: Denoise, x: Tensor, levels: Tensor) -> Tensor:
    """Solve with second-order steps that reuse the evaluation before, one evaluation each.

    With λ = -ln σ, h = λ_s - λ_σ and h' the step before:
        D' = D + h / (2 h') (D - D_before),  x_s = (s / σ) x + (1 - s / σ) D'.
    The first step and the one to 0 have no D_before to use. Source: DPM-Solver++
    (arXiv 2211.01095), algorithm 2, for α = 1.
    """
    before, width_before = None, x.new_zeros(())
    for now, after in _steps(levels, x):
        x0 = denoise(x, now.expand(len(x)))
        width = (now / after).log()
        bent = x0
        if before is not None and after > 0:
            bent = x0 + width / (2 * width_before) * (x0 - before)
        x = bent + after / now * (x - bent)
        before, width_before = x0, width
    return x


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {"heun": heun, "euler": euler, "dpm++2m": dpm_solver_2m}
)
"""Every solver by the name it has in `SampleConfig.solver`."""


def _steps(levels: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each level with the one after it; 0 follows the last."""
    ends = torch.cat([levels, levels.new_zeros(1)]).to(like)
    return itertools.pairwise(ends)

"""From images and their levels to a trained diffusion model and its samples.

What other trainers need is here by name, and loads when it is first used:
`UsableLevels`, `LevelThenSampleBatchSampler`, `LevelThenSampleIterable`, `WithLevels`,
`TimestepLevels`, `ambient_target`, `sample_id_of`. See docs/use_in_your_trainer.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ambient_omni import torchvision_hook

if TYPE_CHECKING:
    from ambient_omni.data.samplers import (
        LevelThenSampleBatchSampler as LevelThenSampleBatchSampler,
    )
    from ambient_omni.data.samplers import LevelThenSampleIterable as LevelThenSampleIterable
    from ambient_omni.data.samplers import WithLevels as WithLevels
    from ambient_omni.data.usable_levels import UsableLevels as UsableLevels
    from ambient_omni.models.objectives import denoising_pair as ambient_target  # noqa: F401
    from ambient_omni.noise.timesteps import TimestepLevels as TimestepLevels
    from schemas.ids import sample_id_of as sample_id_of

# Before anything that may import torchvision: every command and worker passes here first.
torchvision_hook.install()

_HOMES = {
    "LevelThenSampleBatchSampler": ("ambient_omni.data.samplers", "LevelThenSampleBatchSampler"),
    "LevelThenSampleIterable": ("ambient_omni.data.samplers", "LevelThenSampleIterable"),
    "TimestepLevels": ("ambient_omni.noise.timesteps", "TimestepLevels"),
    "UsableLevels": ("ambient_omni.data.usable_levels", "UsableLevels"),
    "WithLevels": ("ambient_omni.data.samplers", "WithLevels"),
    "ambient_target": ("ambient_omni.models.objectives", "denoising_pair"),
    "sample_id_of": ("schemas.ids", "sample_id_of"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

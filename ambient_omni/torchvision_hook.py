"""Lets torchvision be imported beside a torch build that its compiled part was not made for.

PyPI's torchvision wheels are built against CUDA; beside a CPU-only torch their compiled part does
not load, `import torchvision` ends with "operator torchvision::nms does not exist", and with it
fails whatever asks for torchvision where it is installed: open_clip, transformers, diffusers.
Only two operator schemas are missing for the import; they are declared here and stay without an
implementation. Transforms, networks and data sets work; box operations would say that there is no
kernel. Where the compiled part loads, nothing is declared.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = "torchvision"
_MISSING_OPERATORS = ("nms", "qnms")
# The declarations are undone when their library object goes.
_kept: list[Any] = []


class TorchvisionFinder(MetaPathFinder):
    """Declares the operators once, when torchvision is looked up to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return torchvision's own spec after making it importable; None for all else."""
        if fullname != _NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        # `importlib.util.find_spec` asks whether it is there: that alone must not import torch.
        if spec is not None and spec.loader is not None and not _kept:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """torchvision's own loader, with the declarations made just before its code runs."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        folders = module.__spec__.submodule_search_locations if module.__spec__ else None
        _declare([Path(folder) for folder in folders or ()])
        self._loader.exec_module(module)


def install() -> None:
    """Put the finder in front, once a process; torch is not imported."""
    # By name: an environment may load a copy of this file at start-up, see the Makefile.
    if not any(type(finder).__name__ == TorchvisionFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def _declare(folders: Sequence[Path]) -> None:
    from torch import library as operators

    if _kept or any(_loads(file) for folder in folders for file in folder.glob("_C*.so")):
        return
    define: Any = operators.Library
    library = define(_NAME, "DEF")
    for operator in _MISSING_OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def _loads(file: Path) -> bool:
    import torch

    operators: Any = torch.ops
    try:
        operators.load_library(str(file))
    except OSError:
        return False
    return True

"""Checkpoints: safetensors and JSON, written aside, renamed when complete, verified on load.

A checkpoint is a folder ``step-00001234`` with one ``<group>.safetensors`` per group of tensors
and a ``state.json`` that holds the hash of each file, the step, the parents (policy, table
versions, noise space, configuration and code), and a hash of all that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import CheckpointRefused

_FORMAT = 2
# Those of format 1 have no hash of their state.
_FORMATS = (1, _FORMAT)
_STATE = "state.json"
_PREFIX = "step-"
_PARTIAL = ".partial"
_NAME = re.compile(rf"{_PREFIX}(\d+)")
_READ_BYTES = 1 << 22

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `state` is what was saved with it; tensors are read on demand."""

    path: Path
    step: int
    parents: dict[str, Any]
    state: dict[str, Any]
    groups: tuple[str, ...]

    def tensors(self, group: str) -> Tensors:
        """Read one group of tensors.

        Raises:
            CheckpointRefused: it holds no such group, or the file is damaged.
        """
        if group not in self.groups:
            raise CheckpointRefused(
                f"{self.path} was saved without {group!r} (it has {', '.join(self.groups)}): "
                "use a checkpoint of a run that keeps it"
            )
        file = self.path / f"{group}.safetensors"
        try:
            tensors: Tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointRefused(f"{file} cannot be read: {error}") from error
        return tensors


def save(
    folder: Path,
    step: int,
    groups: Mapping[str, Tensors],
    parents: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint into `folder`; a reader sees all of it or nothing.

    Saving a step that is there already replaces it.
    """
    final = folder / f"{_PREFIX}{step:08d}"
    aside = folder / f".{final.name}{_PARTIAL}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    files = {}
    for group, tensors in groups.items():
        path = aside / f"{group}.safetensors"
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
        _flush(path)
        files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    content = {
        "format": _FORMAT,
        "step": step,
        "files": files,
        "parents": dict(parents),
        "state": dict(state),
    }
    content = json.loads(json.dumps(content))
    (aside / _STATE).write_text(json.dumps({**content, "sha256": _hash_of(content)}, indent=1))
    _flush(aside / _STATE)
    _flush(aside)
    replaced = folder / f".{final.name}.replaced{_PARTIAL}"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    aside.rename(final)
    _flush(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def load(path: Path, expect: Mapping[str, Any] | None = None) -> Checkpoint:
    """Open and verify a checkpoint.

    Args:
        path: its folder.
        expect: parents that have to be equal, e.g. ``{"noise_space": ...}``.

    Raises:
        CheckpointRefused: no checkpoint, truncated, altered, pickled, or of other parents.
    """
    if path.is_file() or not (path / _STATE).exists():
        raise CheckpointRefused(
            f"{path} is no checkpoint folder with a {_STATE}; pickled or single-file checkpoints "
            "are not read"
        )
    try:
        content = json.loads((path / _STATE).read_text())
        files, parents = content["files"], content["parents"]
        groups = tuple(name.removesuffix(".safetensors") for name in files)
        checkpoint = Checkpoint(path, content["step"], parents, content["state"], groups)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointRefused(f"{path / _STATE} is damaged: {error!r}") from error
    if content.get("format") not in _FORMATS:
        raise CheckpointRefused(f"{path} has format {content.get('format')}, not {_FORMAT}")
    if content["format"] == _FORMAT and content.pop("sha256", None) != _hash_of(content):
        raise CheckpointRefused(f"{path / _STATE} was altered: its hash is another now")
    for name, facts in files.items():
        _verify(path / name, facts)
    for name, wanted in (expect or {}).items():
        if parents.get(name) != wanted:
            raise CheckpointRefused(
                f"{path} was made with {name} {parents.get(name)!r}, not {wanted!r}"
            )
    return checkpoint


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first. They are not verified."""
    return sorted(filter(_is_name, folder.glob(f"{_PREFIX}*")), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's name states."""
    return int(path.name.removeprefix(_PREFIX))


def prune(folder: Path, keep: Sequence[str]) -> None:
    """Remove all checkpoints whose names are not in `keep`, and what a killed save left."""
    for path in [*steps(folder), *folder.glob(f".{_PREFIX}*{_PARTIAL}")]:
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def require_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Path) -> None:
    """Check that tensors have the names and shapes of a network's.

    Raises:
        CheckpointRefused: they differ: the checkpoint is of another network.
    """
    have = {name: tuple(tensor.shape) for name, tensor in found.items()}
    want = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    odd = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
    if odd:
        name = odd[0]
        raise CheckpointRefused(
            f"{source} does not fit the network: {len(odd)} tensors differ, the first is {name} "
            f"({have.get(name, 'absent')} in the checkpoint, {want.get(name, 'absent')} here)"
        )


def load_into(module: nn.Module, tensors: Tensors, source: Path) -> None:
    """Copy tensors into a module's parameters and buffers.

    Raises:
        CheckpointRefused: names or shapes differ: the checkpoint is of another network.
    """
    require_fit(tensors, module.state_dict(), source)
    module.load_state_dict(tensors)


def _is_name(path: Path) -> bool:
    # Copies that somebody put beside them are neither read nor removed.
    return _NAME.fullmatch(path.name) is not None


def _hash_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verify(path: Path, facts: Mapping[str, Any]) -> None:
    if not path.exists():
        raise CheckpointRefused(f"{path} is missing")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise CheckpointRefused(f"{path} is truncated: {size} of {facts['bytes']} bytes")
    if _sha256(path) != facts["sha256"]:
        raise CheckpointRefused(f"{path} was altered: its hash is not the one it was saved with")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

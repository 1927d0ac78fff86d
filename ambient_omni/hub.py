"""Pretrained parts from a local folder or a hub: where they lie, and the hash of their weights."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from schemas.errors import BadInput

PIPELINE_INDEX = "model_index.json"
"""Says what a pipeline's parts are; it lies in the top folder."""

# Weights are read from safetensors alone: a pickle can run code.
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
# The same weights again, in half precision or before averaging.
_VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")


def find_part(name: str, part: str, revision: str | None = None) -> Path:
    """Return the local folder of one part of a pretrained pipeline, or of the part by itself.

    Args:
        name: a folder, or a hub id ``owner/name``, which is downloaded to the hub's cache. It is
            a pipeline that has a folder `part`, or holds that part alone.
        part: ``vae``, ``text_encoder``, ``tokenizer``...
        revision: of a hub id: branch, tag or commit.

    Raises:
        BadInput: there is no such folder, and the hub cannot be reached or has no such id.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, part, revision)
    return folder / part if (folder / part).is_dir() else folder


def _download(name: str, part: str, revision: str | None) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(f"there is no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(allow: list[str], ignore: list[str]) -> Path:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=allow, ignore_patterns=ignore)
        )

    try:
        inside = [f"{part}/{pattern}" for pattern in _FILES]
        folder = fetch([*inside, PIPELINE_INDEX], list(_VARIANTS))
        if not (folder / part).is_dir():
            # The part alone. A pipeline may have gigabytes in its top folder, so it comes second.
            folder = fetch(list(_FILES), [*_VARIANTS, "*/*"])
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BadInput(
            f"there is no folder {name}, and the hub has no such model or cannot be reached "
            f"({' '.join(str(error).split())[:200]}): give a folder"
        ) from error
    return folder


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of a model's tensors: names, types, shapes and bytes, in order of name.

    So it is the same however the tensors are split into files, and another one for the weights in
    another precision. Files that stay as they are are hashed once.

    Args:
        folder: holds ``*.safetensors``; where there are variants (``.fp16.``), the plain one
            counts, which is the one that is loaded.

    Raises:
        BadInput: there are no safetensors, or they are damaged.
    """
    from safetensors import SafetensorError

    files = [f for f in sorted(folder.glob("*.safetensors")) if f.name.count(".") == 1]
    if not files:
        raise BadInput(
            f"{folder} holds no *.safetensors: save the model with safe_serialization; pickled "
            "weights are not read"
        )
    facts = [(file, file.stat()) for file in files]
    try:
        return _sha256(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in facts))
    except SafetensorError as error:
        raise BadInput(
            f"the weights in {folder} are damaged ({error}): download them again (a file of a "
            "hundred bytes is a pointer of git-lfs: run `git lfs pull`)"
        ) from error


@functools.lru_cache(maxsize=16)
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    from safetensors import safe_open

    homes = {}
    for file, _, _ in files:
        with safe_open(file, framework="pt") as tensors:
            homes.update(dict.fromkeys(tensors.keys(), file))
    digest = hashlib.sha256()
    for name in sorted(homes):
        with safe_open(homes[name], framework="pt") as tensors:
            tensor = tensors.get_tensor(name).contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(_bytes()).numpy().data)
    return digest.hexdigest()


def _bytes() -> object:
    import torch

    return torch.uint8


def read_json(file: Path) -> dict[str, object]:
    """Read a model's ``config.json``.

    Raises:
        BadInput: it is missing or damaged.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} is missing or damaged: it should be a model's config") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file} is no model's config")
    return content

"""Pretrained parts from a local folder or a hub: where they lie, and the hash of their weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from schemas.errors import BadInput

# Weights are read from safetensors alone: a pickle can run code.
_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")


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
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*_PATTERNS, *(f"{part}/{pattern}" for pattern in _PATTERNS)]
    # A pattern without a folder would match in every folder of the repository.
    others = [f"{other}/*" for other in ("unet", "transformer", "vae", "text_encoder*", "safety*")]
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=[o for o in others if not o.startswith(part)],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadInput(
            f"there is no folder {name}, and the hub has no such model or cannot be reached "
            f"({' '.join(str(error).split())[:200]}): give a folder"
        ) from error


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of a model's tensors: names, types, shapes and bytes, in order of name.

    So it is the same however the tensors are split into files, and another one for the weights in
    another precision.

    Args:
        folder: holds ``*.safetensors``; where there are variants (``.fp16.``), the plain one
            counts, which is the one that is loaded.

    Raises:
        BadInput: there are no safetensors.
    """
    from safetensors import safe_open

    files = [f for f in sorted(folder.glob("*.safetensors")) if f.name.count(".") == 1]
    if not files:
        raise BadInput(
            f"{folder} holds no *.safetensors: save the model with safe_serialization; pickled "
            "weights are not read"
        )
    homes = {}
    for file in files:
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

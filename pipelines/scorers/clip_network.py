"""A CLIP network of open_clip: found in a folder or on the hub, hashed, loaded once a process.

Shapes: N images, M texts, D features.
"""

import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipelines.scorers.weights import WeightsMissing, pinned, sha256_of
from schemas.errors import BadInput
from schemas.ids import canonical_hash
from schemas.scores import PATCH_SIDES

_CONFIG_FILE = "open_clip_config.json"
_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Fixed, so that the numbers do not depend on how many images a task happens to hold.
_BATCH = 32
# Far more than any context holds; a caption of a megabyte must not cost a tokenizer minutes.
_MAX_CHARACTERS = 4096


class ClipConfig(BaseModel):
    """Which CLIP network looks at the images, and at what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default="laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        description="folder in open_clip's layout, or hub id of a repository in it",
    )
    revision: str | None = Field(default=None, description="commit of the hub's repository")
    sha256: str | None = Field(default=None, description="of the weights; another file is refused")
    patch_sides: tuple[int, ...] = Field(
        default=(), description=f"patches that clip_iqa is averaged over too, of {PATCH_SIDES}"
    )
    aesthetic_head: Path | None = Field(
        default=None, description="linear head on this network's vectors, weight (1, D), bias (1,)"
    )
    aesthetic_sha256: str | None = Field(default=None, description="of the head's file")

    def folder(self) -> Path:
        """Return the folder of the network.

        Raises:
            WeightsMissing: open_clip or the network is not there and cannot be fetched.
        """
        from importlib.util import find_spec

        if find_spec("open_clip") is None:
            raise WeightsMissing("open_clip is missing: run `pip install 'ambient-omni[clip]'`")
        local = Path(self.model).expanduser()
        return local if (local / _CONFIG_FILE).is_file() else _from_hub(self.model, self.revision)

    def weights(self) -> str:
        """Return the hash of the network's weights and architecture.

        Raises:
            WeightsMissing: the network is not there.
            BadInput: its weights are not the pinned ones.
        """
        folder = self.folder()
        file = _weights_file(folder)
        found = sha256_of(file) if self.sha256 is None else pinned(file, self.sha256)
        return canonical_hash([found, json.loads((folder / _CONFIG_FILE).read_text())])


def _from_hub(model: str, revision: str | None) -> Path:
    found = _try_hub(model, revision)
    if isinstance(found, Path):
        return found
    raise WeightsMissing(
        f"{model} is neither a folder with {_CONFIG_FILE} nor can it be had from the hub ({found})"
    )


@cache
def _try_hub(model: str, revision: str | None) -> Path | str:
    """Return the folder of a repository, or why there is none; asked once a process."""
    from huggingface_hub import snapshot_download

    said = ""
    patterns = ["*.json", "*.txt", "*.model", _WEIGHT_FILES[0]]
    # What is cached first: executors must not each ask the hub.
    for wanted, offline in ((patterns, True), (patterns, False), ([*_WEIGHT_FILES], False)):
        try:
            folder = Path(
                snapshot_download(
                    model, revision=revision, allow_patterns=wanted, local_files_only=offline
                )
            )
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())[:120]
            continue
        if any((folder / name).is_file() for name in _WEIGHT_FILES):
            return folder
        said = f"it holds none of {list(_WEIGHT_FILES)}"
    return said


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsMissing(f"{folder} holds none of {list(_WEIGHT_FILES)}")


class ClipNetwork:
    """A network with its preprocessing and tokenizer. See `load_clip`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def encode_images(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return unit vectors, float32 (N, D), of uint8 (N, side, side, 3)."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(views), _BATCH):
                x = torch.from_numpy(np.ascontiguousarray(views[start : start + _BATCH]))
                x = x.to(self._device).permute(0, 3, 1, 2).float() / 255
                features = self._model.encode_image((x - self._mean) / self._std, normalize=True)
                parts.append(features.float().cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, float32 (M, D); a text is cut where the context ends."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                cut = [text[:_MAX_CHARACTERS] for text in texts[start : start + _BATCH]]
                tokens = self._tokenizer(cut).to(self._device)
                features = self._model.encode_text(tokens, normalize=True)
                parts.append(features.float().cpu().numpy())
        return np.concatenate(parts)

    @cached_property
    def side(self) -> int:
        """Side of the square that the network sees, pixels."""
        size = self._model.visual.image_size
        return int(size[0] if isinstance(size, tuple | list) else size)

    @cached_property
    def scale(self) -> float:
        """The trained factor of cosines before a softmax; 100 for most."""
        return float(self._model.logit_scale.exp())

    @cached_property
    def _model(self) -> Any:
        import open_clip

        model = open_clip.create_model(f"local-dir:{self._folder}", weights_only=True)
        return model.eval().to(self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        import open_clip

        return open_clip.get_tokenizer(f"local-dir:{self._folder}")

    @cached_property
    def _mean(self) -> Any:
        return self._channels("mean", _OPENAI_MEAN)

    @cached_property
    def _std(self) -> Any:
        return self._channels("std", _OPENAI_STD)

    def _channels(self, name: str, usual: tuple[float, ...]) -> Any:
        import torch

        settings = json.loads((self._folder / _CONFIG_FILE).read_text()).get("preprocess_cfg", {})
        values = torch.tensor(settings.get(name, usual), device=self._device)
        return values[None, :, None, None]

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


# What open_clip takes where a network says nothing.
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@cache
def load_clip(folder: Path) -> ClipNetwork:
    """Return this process's network of that folder; the weights are loaded once."""
    return ClipNetwork(folder)


@cache
def load_head(path: Path) -> tuple[NDArray[np.float64], float]:
    """Return weight (D,) and bias of a linear head, a torch state dict or safetensors.

    Raises:
        BadInput: the file is no such head.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = state["weight"].double().numpy(), state["bias"].double().numpy()
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise BadInput(f"{path} is no linear head with weight and bias: {error}") from error
    if weight.ndim != 2 or weight.shape[0] != 1:
        raise BadInput(f"{path} has a weight of shape {weight.shape}; want (1, D)")
    return weight[0], float(bias[0])

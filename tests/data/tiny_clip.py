"""A small CLIP network of open_clip with random weights, in the layout of its hub repositories."""

import json

from ambient_omni import rng

SIDE, WIDTH = 32, 16
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def save_tiny_clip(folder, seed=0):
    """Write config and weights into a folder; return it."""
    import open_clip
    from safetensors.torch import save_file

    model = {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": SIDE,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with rng.torch_seeded(seed, "tiny-clip"):
        network = open_clip.CLIP(**model)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder

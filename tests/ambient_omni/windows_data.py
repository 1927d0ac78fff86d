"""Textures with a known answer, all of one grain: squares of two positions, random colours.

The domain's images are brighter or darker as a whole. The foreign ones have the same grain and the
same brightnesses, but as a ramp from left to right: in a small crop nobody can tell. Noise has
another grain.
"""

import functools

import numpy as np

from ambient_omni import rng
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.transforms import Transform
from ambient_omni.windows.config import CropClassifierConfig, WindowsJob
from schemas.root import Root
from tests.ambient_omni.conftest import define_set
from tests.conftest import store_batch

SIDE = 24
SPACE = Transform(resolution=SIDE)
CROPS = CropClassifierConfig(
    network={"widths": (12, 16), "hidden": 48},
    sizes=(4, 8, 16),
    num_crops=8_000,
    batch_size=64,
    learning_rate=1e-2,
    weight_decay=0.0,
    ema_decay=0.97,
    crops_per_image=2,
    planted_share=0.25,
)
JOB = WindowsJob(
    foreign_batches=("foreign", "static"),
    transform=SPACE,
    crops=CROPS,
    receptive_field={
        "network": {"widths": (12, 16), "hidden": 24},
        "sigmas": (0.05, 0.2, 0.8),
        "contexts": (2, 4, 8, 12),
        "num_windows": 3_000,
        "batch_size": 64,
        "ema_decay": 0.97,
        "num_noises": 2,
        "tolerance": 0.2,
        "relative": True,
    },
)
GRAIN, RAMP = 90.0, 45.0  # half widths of the grey levels


def grains(count, side, seed, *, ramp=False):
    """uint8 images (side, side, 3)."""
    draw = rng.generator(seed, "grains", int(ramp))
    half = side // 2 + 1
    squares = draw.uniform(-GRAIN, GRAIN, (count, half, half, 3)).repeat(2, 1).repeat(2, 2)
    shift = draw.integers(2, size=2)
    grain = squares[:, shift[0] :, shift[1] :][:, :side, :side]
    if ramp:
        across = np.linspace(-RAMP, RAMP, side)[None, None, :, None]
        light = across * draw.choice([-1, 1], (count, 1, 1, 1))
    else:
        light = draw.uniform(-RAMP, RAMP, (count, 1, 1, 1))
    return list(np.rint(np.clip(127.5 + grain + light, 0, 255)).astype(np.uint8))


def noise(count, side, seed):
    """uint8 images whose positions know nothing of each other."""
    draw = rng.generator(seed, "noise-images")
    return list(draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def store(root, name, images, role="pool"):
    """Store images as a batch with its pack; returns the sample_rows."""
    table = store_batch(root, name, images, role=role, images_per_shard=500)
    rows = table["sample_row"].to_numpy()
    writer = PackWriter(root.packs, SPACE, name, "tests")
    writer.begin()
    with writer.chunk(0) as chunk:
        for row, image in zip(rows, images, strict=True):
            chunk.add(int(row), image)
    writer.finish([chunk.info])
    return rows


def define_domain(root, rows, every=5):
    """Make every fifth sample a validation image, the others trusted."""
    define_set(root, "validation", rows[::every])
    define_set(root, "trusted", [row for row in rows if row not in set(rows[::every])])


@functools.cache
def measured(folder):
    """A root with a crop classifier and a receptive field of grains, made once: (root, ids)."""
    from pipelines.jobs.windows import windows

    root = Root.create(folder / "windows-of-grains")
    define_domain(root, store(root, "ref", grains(160, SIDE, 1), role="reference"))
    store(root, "foreign", grains(120, SIDE, 2, ramp=True))
    store(root, "static", noise(40, SIDE, 3))
    notes = windows(root, JOB).notes
    return root, notes[0].split()[1], notes[1].split()[1]

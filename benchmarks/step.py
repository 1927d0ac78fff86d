"""``python -m benchmarks.step``: a training step against a bare diffusers loop.

Both sides train the same UNet2DModel with AdamW (fused), clipping and a moving average, in float32,
on the same images. The bare loop is what diffusers' training scripts boil down to: images in
memory, `torch.randn_like`, `DDPMScheduler.add_noise`, MSE, `EMAModel` (foreach). Ours reads packs,
draws levels and then samples, makes addressed noise, and audits every draw.

Time is measured in turns in one process; memory as the growth of the peak resident set over what
the imports take, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from ambient_omni import rng
from ambient_omni.data.annotations import Annotations
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.config import LoaderConfig
from ambient_omni.data.loaders import make_loader
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import PackSet
from ambient_omni.data.sample_ids import NUM_BYTES, SampleIds
from ambient_omni.data.training_data import TrainingData
from ambient_omni.data.transforms import Transform
from ambient_omni.training.audit import Audit, Audited
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.distribution import make_accelerator
from ambient_omni.training.engine import Engine
from ambient_omni.training.models import new_model
from benchmarks.common import interleaved, ratio_of_rounds, record

RESOLUTION, BATCH, NUM_IMAGES = 32, 16, 4000
NETWORK = {
    "kind": "unet2d",
    "widths": (64, 128),
    "layers_per_block": 1,
    "attention_scales": 1,
}
STEPS_PER_ROUND = 2

Step = Callable[[], None]


def pixels() -> np.ndarray:
    """Images uint8 (N, H, W, 3)."""
    shape = (NUM_IMAGES, RESOLUTION, RESOLUTION, 3)
    return rng.generator(0, "step-benchmark").integers(0, 256, shape, np.uint8)


def config() -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "policy_id": "p",
            "batches": ("b",),
            "transform": {"resolution": RESOLUTION},
            "network": NETWORK,
            "parameterisation": {"kind": "epsilon"},
            "prior": {"kind": "ddpm"},
            "batch_size": BATCH,
            "optimizer": {"learning_rate": 1e-4, "warmup_images": 0, "decay": "constant"},
            "num_images": 10**9,
        }
    )


def training_data(folder: Path) -> TrainingData:
    """A pool of which a fifth is trusted, under levels between 0.1 and 3 for the rest."""
    transform = Transform(resolution=RESOLUTION)
    writer = PackWriter(folder, transform, "b", "benchmark")
    writer.begin()
    with writer.chunk(0) as chunk:
        for row, image in enumerate(pixels()):
            chunk.add(row, image)
    writer.finish([chunk.info])
    packs = PackSet.open(folder, transform, ["b"])
    sigma_min = 0.1 * 30 ** rng.uniform(NUM_IMAGES, 0, "levels")
    sigma_min[: NUM_IMAGES // 5] = 0
    raw = rng.generator(0, "ids").integers(0, 256, (NUM_IMAGES, NUM_BYTES), np.uint8)
    return TrainingData(
        packs=packs,
        sample_rows=packs.sample_rows,
        sample_ids=SampleIds(raw),
        annotations=Annotations(sigma_min, np.zeros(NUM_IMAGES, np.float32)),
        sources=np.zeros(NUM_IMAGES, np.uint8),
        source_names=("benchmark",),
        labels=None,
        label_names=(),
        captions=None,
        num_held_out=0,
    )


def ours(folder: Path) -> Step:
    wanted, data = config(), training_data(folder)
    accelerator = make_accelerator(wanted)
    engine = Engine(new_model(wanted, 0), wanted, accelerator)
    audit = Audit(Audited.of(data, wanted.kappa))
    batches = iter(
        make_loader(
            BatchMaker(data, wanted),
            LoaderConfig(),
            start_step=0,
            num_steps=10**6,
            positions=range(BATCH),
        )
    )
    numbers = count()

    def step() -> None:
        batch = next(batches)
        engine.step(next(numbers), batch)
        audit.add(batch.index.numpy(), batch.sigma.double().numpy())

    return step


def bare(_: Path) -> Step:
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2).contiguous()
    model: UNet2DModel = new_model(config(), 0).denoiser.network.unet
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
    scheduler = DDPMScheduler()
    ema = EMAModel(model.parameters(), decay=0.9999, foreach=True)

    def epochs() -> Iterator[torch.Tensor]:
        while True:
            for rows in torch.randperm(NUM_IMAGES).split(BATCH):
                x0 = images[rows].float().div_(127.5).sub_(1)
                # Every other image is mirrored, as in ours.
                mirrored = torch.rand(len(x0)) < 0.5
                x0[mirrored] = x0[mirrored].flip(3)
                yield x0

    batches = epochs()

    def step() -> None:
        x0 = next(batches)
        noise = torch.randn_like(x0)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),))
        noisy = scheduler.add_noise(x0, noise, timesteps)
        loss = torch.nn.functional.mse_loss(model(noisy, timesteps).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        loss.detach().item()

    return step


SIDES: dict[str, Callable[[Path], Step]] = {"ours": ours, "bare": bare}


def measure_time(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: make(Path(folder)) for name, make in SIDES.items()}
        processor: dict[str, list[float]] = {name: [] for name in steps}

        def round_of(name: str) -> Step:
            def run() -> None:
                began = time.process_time()
                for _ in range(STEPS_PER_ROUND):
                    steps[name]()
                processor[name].append(time.process_time() - began)

            return run

        times = interleaved({name: round_of(name) for name in steps}, rounds, warmups=2)
    figure, spread = ratio_of_rounds(times["ours"], times["bare"])
    by_processor = median(processor["ours"][2:]) / median(processor["bare"][2:])
    best = min(times["ours"]) / min(times["bare"])
    record(
        "step_time",
        figure,
        unit="ratio",
        goal=1.03,
        better="lower",
        compared_with="a bare diffusers loop with the same network, batch, precision and EMA",
        spread=f"{spread}; best of each {best:.3f}, processor time {by_processor:.3f}",
        note=f"{min(times['ours']) / STEPS_PER_ROUND * 1e3:.1f} ms a step of {BATCH} images at "
        f"{RESOLUTION} pixels, {torch.get_num_threads()} threads, loader in the same process",
        packages=("torch", "diffusers", "accelerate", "numpy"),
    )


def peak_growth(side: str, steps: int) -> float:
    """MiB by which the resident set's peak grows after the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        step = SIDES[side](Path(folder))
        for _ in range(steps):
            step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_memory(rounds: int) -> None:
    def child(side: str) -> float:
        command = [sys.executable, "-m", "benchmarks.step", "--memory-of", side]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    growth = {side: [child(side) for _ in range(rounds)] for side in SIDES}
    figure, spread = ratio_of_rounds(growth["ours"], growth["bare"])
    record(
        "step_memory",
        figure,
        unit="ratio",
        goal=1.05,
        better="lower",
        compared_with="the peak resident set of the bare loop, over what the imports take",
        spread=spread,
        note=f"{median(growth['ours']):.0f} MiB against {median(growth['bare']):.0f} MiB: weights, "
        "gradients, moments, average, activations and the images",
        packages=("torch", "diffusers", "accelerate", "numpy"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--memory-of", choices=SIDES, help="one side, for a process of its own")
    options = parser.parse_args()
    if options.memory_of:
        print(peak_growth(options.memory_of, 12))
        return
    if options.only != "time":
        measure_memory(3)
    if options.only != "memory":
        measure_time(options.rounds)


if __name__ == "__main__":
    main()

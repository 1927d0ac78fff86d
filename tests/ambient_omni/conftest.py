"""A root with everything that training reads, made without Spark: tiny, real, written for real."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.training_data import READ_TABLES, open_training_data
from ambient_omni.data.transforms import Transform
from ambient_omni.training.config import TrainConfig
from schemas.registry import contract

TRANSFORM = Transform(resolution=8)


def build_pack(root, batch, rows, transform=TRANSFORM):
    side = transform.resolution
    colours = rng.generator(0, "pixels", batch).integers(
        0, 256, (len(rows), 1, 1, 3), dtype=np.uint8
    )
    # One colour each: what a tiny network can learn in a second.
    pixels = np.broadcast_to(colours, (len(rows), side, side, 3))
    writer = PackWriter(root.packs, transform, batch, "tests")
    writer.begin()
    with writer.chunk(0) as chunk:
        for row, image in zip(rows, pixels, strict=True):
            chunk.add(int(row), image)
    writer.finish([chunk.info])


def annotate(root, batch, rows, sigma_min, policy_id="policy", transform=TRANSFORM, sigma_max=0.0):
    reasons = ["never_crosses" if level is None else "crossing" for level in sigma_min]
    table = contract("noise_annotations").table(
        [
            {
                "sample_row": int(row),
                "ingest_batch": batch,
                "policy_id": policy_id,
                "sigma_min": level,
                "sigma_max": sigma_max,
                "noise_space": transform.noise_space,
                "slope": None,
                "sigma_min_standard_error_octaves": None,
                "reason": reason,
            }
            for row, level, reason in zip(rows, sigma_min, reasons, strict=True)
        ]
    )
    part = {"policy_id": policy_id, "ingest_batch": batch}
    inputs = {"levels": list(sigma_min), "rows": [int(row) for row in rows]}
    root.tables.commit("noise_annotations", table, slice=part, inputs=inputs, job="tests")


def define_set(root, name, rows):
    table = contract("reference_sets").table(
        [{"reference_set": name, "sample_row": int(row), "role": name} for row in rows]
    )
    part = {"reference_set": name}
    inputs = {"rows": [int(row) for row in rows]}
    root.tables.commit("reference_sets", table, slice=part, inputs=inputs, job="tests")


@pytest.fixture
def tiny():
    """What `trainable` is made with, for tests that need one more batch."""
    return SimpleNamespace(annotate=annotate, build_pack=build_pack, define_set=define_set)


@pytest.fixture
def trainable(root, make_batch, images):
    """A root with 12 references (4 for validation) and 20 pool images of several levels."""
    reference = make_batch(root, "ref", images(12, side=8, seed=1), role="reference")
    pool = make_batch(root, "pool", images(20, side=8, seed=2))
    rows = {"ref": reference["sample_row"].to_numpy(), "pool": pool["sample_row"].to_numpy()}
    define_set(root, "trusted", rows["ref"][4:])
    define_set(root, "validation", rows["ref"][:4])
    annotate(root, "ref", rows["ref"], [0.0] * 12)
    annotate(root, "pool", rows["pool"], [0.2, 0.5, 1.0, None] * 5)
    for batch in rows:
        build_pack(root, batch, rows[batch])
    return root


@pytest.fixture
def config():
    """`config(**changes)`: a run of 12 steps that takes a second."""

    def make(**changes):
        settings = {
            "name": "tiny",
            "policy_id": "policy",
            "batches": ("ref", "pool"),
            "transform": TRANSFORM,
            "network": {"patch": 2, "widths": (16,), "attention": False, "norm_groups": 4},
            "optimizer": {"warmup_images": 0},
            "held_out": {"sigmas": (0.2, 1.0), "num_noises": 1},
            "samples": {"num_images": 4, "num_steps": 3},
            "batch_size": 8,
            "num_images": 96,
            "evaluate_every_images": 32,
            "log_every_images": 16,
        }
        if "init_from" in changes:
            del settings["network"]  # the pipeline brings one
        return TrainConfig.model_validate({**settings, **changes})

    return make


@pytest.fixture(scope="session")
def launcher():
    """`launcher(root, config, world=1, kill_after=None, ...)`: exit codes per process.

    `launcher.generate(root, job, world)` likewise.
    """
    program = Path(__file__).parents[1] / "data" / "training_launcher.py"
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def answer(job):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        def launch(
            root,
            config,
            world=1,
            kill_after=None,
            kill_at=None,
            stop_at=None,
            blind=None,
            trace=None,
            busy=False,
        ):
            job = {
                "world": world,
                "root": str(root.path),
                "config": config.model_dump(mode="json"),
                "kill_after": kill_after,
                "kill_at": kill_at,
                "stop_at": stop_at,
                "blind": blind,
                "busy": busy,
                "trace": None if trace is None else str(trace),
            }
            return answer(job)

        def generate(root, job, world):
            settings = job.model_dump(mode="json")
            return answer({"world": world, "root": str(root.path), "generate": settings})

        launch.generate = generate
        yield launch
        process.stdin.close()


@pytest.fixture
def traces(tmp_path):
    """`traces.folder(name)` for a run's traces, `traces.read(folder)`: rank to step to batch."""

    def folder(name):
        path = tmp_path / "traces" / name
        path.mkdir(parents=True)
        return path

    def read(path):
        ranks = {}
        for file in sorted(path.glob("*.jsonl")):
            steps = ranks.setdefault(int(file.stem), {})
            for line in file.read_text().splitlines():
                step, *batch = json.loads(line)
                # A step that a kill undid is taken again, on the same batch.
                assert steps.setdefault(step, batch) == batch
        return ranks

    return SimpleNamespace(folder=folder, read=read)


@pytest.fixture
def chunked(trainable, config):
    """The tiny root with packs of four samples a chunk: 3 + 5 chunks."""
    space = config().transform
    for batch in ("ref", "pool"):
        rows = trainable.tables.read("samples", ["sample_row"], {"ingest_batch": batch})
        rows = rows["sample_row"].to_numpy()
        writer, infos = PackWriter(trainable.packs, space, batch, "chunked"), []
        writer.begin()
        for number, start in enumerate(range(0, len(rows), 4)):
            with writer.chunk(number) as chunk:
                for row in rows[start : start + 4]:
                    pixels = rng.generator(0, "pixels", int(row)).integers(
                        0, 256, space.shape, dtype=np.uint8
                    )
                    chunk.add(int(row), pixels)
            infos.append(chunk.info)
        writer.finish(infos)
    return trainable


@pytest.fixture
def maker(chunked, config):
    """`maker(**changes)`: makes the batches of a config with such changes."""

    def make(**changes):
        made = config(batch_size=8, **changes)
        data = open_training_data(chunked, made, chunked.tables.versions(READ_TABLES))
        return BatchMaker(data, made, condition_dropout=0.5)

    return make

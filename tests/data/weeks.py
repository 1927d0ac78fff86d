"""What integration tests of operations share: tiny images, a tiny recipe, ticks played by hand."""

import time

import dagster as dg
import numpy as np
from PIL import Image, ImageFilter

from ambient_omni import rng
from dagster_project.definitions import build_definitions
from dagster_project.defs.project import Project
from dagster_project.instance import open_instance

RECIPE = {
    "transform": {"resolution": 16},
    "validation_fraction": 0.3,
    "scores": {"encoder": {"resolution": 32}},
    "ood": {"encoder": {"resolution": 32}},
    "classifier": {
        "num_images": 2000,
        "num_levels": 6,
        "num_noises": 2,
        # So small a classifier proves the road, not itself.
        "control": {"bar": 0.05, "severities": {"gaussian_blur": 3.0}},
    },
    "arms": {
        "only_reference": {"kind": "fixed_per_source", "levels": {"*": None}},
        "annotated": {"kind": "classifier_threshold"},
    },
    "training": {
        "network": {"patch": 4, "widths": [16, 32], "norm_groups": 8},
        "batch_size": 16,
        "num_images": 320,
        "evaluate_every_images": 160,
        "log_every_images": 80,
        "held_out": {"sigmas": [0.2, 1.0], "max_images": 8},
        "samples": {"num_images": 4, "num_steps": 3},
    },
}


def write_images(folder, count, purpose, blur=0.0, contrast=1.0):
    """Blocks of random colours as PNG files, blurred and pale as asked."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = rng.generator(0, purpose).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        pale = (128 + (pixels.astype(float) - 128) * contrast).astype(np.uint8)
        image = Image.fromarray(pale).resize((24, 24), Image.Resampling.NEAREST)
        image.filter(ImageFilter.GaussianBlur(blur)).save(folder / f"{purpose}-{number:03d}.png")


class Orchestrator:
    """Plays the daemon: ticks sensors and the schedule, executes in process what they ask for."""

    def __init__(self, root):
        self.root = root
        self.project = Project(root_path=str(root.path))
        self.definitions = build_definitions(self.project)
        self.instance = open_instance(root)
        self.cursors = {}
        self.run_keys = set()

    def tick(self, name):
        """Return the results of the runs that a sensor's tick asked for."""
        sensor = self.definitions.get_repository_def().get_sensor_def(name)
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            resources={"project": self.project},
            repository_def=self.definitions.get_repository_def(),
        )
        began = time.monotonic()
        # Left open, a context stays Dagster's current one after its instance is gone.
        with context:
            data = sensor.evaluate_tick(context)
        self.seconds = time.monotonic() - began
        self.cursors[name] = data.cursor
        self.skipped = data.skip_message
        for request in data.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        return [self._run(sensor.job_name, request) for request in data.run_requests or ()]

    def night(self, when):
        """Return the result of the nightly run."""
        schedule = self.definitions.get_repository_def().get_schedule_def("nightly_rescore")
        context = dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=when,
            resources={"project": self.project},
            repository_def=self.definitions.get_repository_def(),
        )
        with context:
            (request,) = schedule.evaluate_tick(context).run_requests
        return self._run(schedule.job_name, request)

    def execute(self, job, ops=None, **more):
        """Execute a job as a person does from the launchpad."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, run_config={"ops": ops or {}}, raise_on_error=False, **more
        )

    def _run(self, job, request):
        if request.run_key in self.run_keys:
            return None
        self.run_keys.add(request.run_key)
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            run_config=request.run_config,
            tags=request.tags,
            raise_on_error=False,
        )

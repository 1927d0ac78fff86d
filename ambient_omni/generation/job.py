"""The `generate` command: images of a run into a folder or shards, going on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from ambient_omni.generation.config import GenerateJob, SampleConfig
from ambient_omni.generation.grids import save_grid
from ambient_omni.generation.outputs import Folder, Output, Tar, claim
from ambient_omni.generation.sampling import Sampler
from ambient_omni.generation.sharing import first_in_main, processes, share
from ambient_omni.progress import progress
from ambient_omni.training.trained import TrainedModel, load_trained
from schemas.errors import BadInput
from schemas.root import Root

# Images of a grid that somebody looks at.
_GRID_IMAGES = 100

# Settings that make other images; the number of images does not, so more can be asked for.
_NOT_OF_THE_IMAGES = {"num_images", "each_evaluation"}


def generate(root: Root, job: GenerateJob, *, show: bool = True) -> int:
    """Generate images with a run's selected checkpoint, with a grid and their parents.

    Images that are there already are kept: the same call goes on with what was interrupted, and a
    greater number adds to what there is. Processes that were launched together share the images,
    which are those that one process would have made.

    Args:
        root: where the run is.
        job: run, folder, format and sampler.
        show: draw a progress bar.

    Returns:
        The number of images that were asked for, all of which are there.

    Raises:
        BadInput: there is no such run or prompts file, or the folder holds other images.
        CheckpointRefused: the checkpoint is damaged.
    """
    with processes() as here:
        return _generate(root, job, here, show=show and here.is_main_process)


def _generate(root: Root, job: GenerateJob, here: PartialState, *, show: bool) -> int:
    trained = load_trained(root, job.run_id, checkpoint_path(root, job.run_id, job.checkpoint))
    config, out = _with_prompts(job), job.out.expanduser()
    trained.config.require_guidable(config)
    sampler = Sampler(
        trained.model.on_accelerator(),
        config,
        trained.x0_shape,
        trained.label_names,
        trained.config.prior,
        job.batch_size,
    )
    first_in_main(lambda: claim(out, _settings(job, config, trained)), here)
    output = Tar(out, job.images_per_shard) if job.format == "tar" else Folder(out)
    missing = output.missing(config.num_images)
    # A shard is one process's; images of a folder are anybody's.
    mine = share(missing, None if job.format == "tar" else job.batch_size, here)
    here.wait_for_everyone()  # until all know what is missing
    _fill(output, sampler, mine, config.num_images - _count(missing), show)
    here.wait_for_everyone()
    if here.is_main_process:
        _describe(output, sampler, config.num_images, out)
    return config.num_images


def checkpoint_path(root: Root, run_id: str, name: str | None) -> Path | None:
    """Return the folder of a run's checkpoint by its name; None for the selected one.

    Raises:
        BadInput: there is none of that name.
    """
    if name is None:
        return None
    path = root.runs / run_id / name
    if not path.is_dir():
        raise BadInput(f"run {run_id} has no checkpoint {name}: give its folder in the run's")
    return path


def _fill(
    output: Output, sampler: Sampler, missing: Sequence[range], there: int, show: bool
) -> None:
    total = there + _count(missing)
    with progress(total=total, initial=there, label="generating", unit="images", show=show) as bar:
        for numbers in missing:
            facts = [sampler.facts(number) for number in numbers]
            output.write(numbers, _counted(sampler.images(numbers), bar), facts)


def _count(runs: Sequence[range]) -> int:
    return sum(len(numbers) for numbers in runs)


def _counted(images: Any, bar: Any) -> Any:
    for image in images:
        yield image
        bar.update(1)


def _describe(output: Output, sampler: Sampler, count: int, folder: Path) -> None:
    if isinstance(output, Folder):
        # Also those of an earlier call that asked for more.
        output.describe([sampler.facts(number) for number in range(output.count())])
    shown = range(min(count, _GRID_IMAGES))
    images = np.stack([output.read(number) for number in shown])
    save_grid(images, folder / "grid.png", captions=sampler.titles(len(shown)))


def _settings(job: GenerateJob, config: SampleConfig, trained: TrainedModel) -> dict[str, Any]:
    return {
        **trained.parents,
        "checkpoint": trained.checkpoint.name,
        "format": job.format,
        "images_per_shard": job.images_per_shard if job.format == "tar" else None,
        "sampler": config.model_dump(mode="json", exclude=_NOT_OF_THE_IMAGES),
    }


def _with_prompts(job: GenerateJob) -> SampleConfig:
    if job.prompts_file is None:
        return job.samples
    try:
        # A byte order mark is no part of a prompt, and a line ends at a line feed alone.
        lines = job.prompts_file.expanduser().read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the prompts in {job.prompts_file}: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise BadInput(f"{job.prompts_file} holds no prompt: write one on each line")
    return job.samples.model_copy(update={"prompts": prompts})

"""The `export` command: a run as a pipeline folder of diffusers, with its model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from ambient_omni.generation.card import read_card, write_card
from ambient_omni.generation.config import ExportJob
from ambient_omni.generation.export import export_pipeline
from ambient_omni.generation.job import checkpoint_path
from ambient_omni.models.adapters import has_adapters, save_lora
from ambient_omni.models.pretrained import save_pipeline
from ambient_omni.training.run_record import find_run
from ambient_omni.training.trained import TrainedModel, load_trained
from schemas.errors import BadInput
from schemas.root import Root


def export(root: Root, job: ExportJob) -> Path:
    """Write a run's averaged weights as a folder that plain diffusers samples from.

    A new network becomes a pipeline (see `export.export_pipeline`). A fine-tuned one becomes the
    pipeline it came from with its new network; adapters become a folder for `load_lora_weights`.
    The folder appears when it is complete.

    Returns:
        The folder.

    Raises:
        BadInput: there is no such run or checkpoint, or something lies at `job.out`.
        CheckpointRefused: the checkpoint is damaged.
    """
    out = job.out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already: name another folder, or remove it")
    card = read_card(root, find_run(root, job.run_id))
    trained = load_trained(root, job.run_id, checkpoint_path(root, job.run_id, job.checkpoint))
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        opening = _write(trained, aside)
        write_card(card, aside, trained, opening.replace("FOLDER", out.name))
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _write(trained: TrainedModel, folder: Path) -> str:
    """Write the weights; return lines of Python that sample from them, FOLDER for the folder."""
    start = trained.config.init_from
    if start is None:
        return _write_new(trained, folder)
    call = _call("", trained)
    if not has_adapters(trained.model):
        save_pipeline(trained.model, start, folder)
        return _lines("DiffusionPipeline", '"FOLDER"', call)
    save_lora(trained.model, folder)
    pinned = "" if start.revision is None else f', revision="{start.revision}"'
    return _lines(
        "DiffusionPipeline", f'"{start.path}"{pinned}', call, 'pipe.load_lora_weights("FOLDER")\n'
    )


def _write_new(trained: TrainedModel, folder: Path) -> str:
    written = export_pipeline(
        trained.model, folder, label_names=trained.label_names, prior=trained.config.prior
    )
    trust = ", trust_remote_code=True" if written.has_code else ""
    return _lines(written.pipeline, f'"FOLDER"{trust}', _call(written.pipeline, trained))


def _call(pipeline: str, trained: TrainedModel) -> str:
    kind, names = trained.config.condition.kind, list(trained.label_names[:2])
    if kind == "none":
        return "pipe(batch_size=2)"
    # Said aloud: pipelines of diffusers have other guidance than ours by default, 4 or 7.5.
    guidance = f"guidance_scale={trained.config.samples.guidance:g}"
    if kind == "caption":
        return f'pipe(prompt="a caption", {guidance})'
    labels = f"pipe.get_label_ids({names})" if pipeline == "DiTPipeline" else names
    return f"pipe(class_labels={labels}, {guidance})"


def _lines(pipeline: str, source: str, call: str, then: str = "") -> str:
    return (
        f"from diffusers import {pipeline}\n\n"
        f"pipe = {pipeline}.from_pretrained({source})\n{then}"
        f"images = {call}.images"
    )

"""``python -m ambient_omni COMMAND --root DIR ...``; ``--help`` lists the commands."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ambient_omni.config import load_config, resolved
from ambient_omni.config_template import add_print_config
from ambient_omni.generation.config import ExportJob, GenerateJob
from ambient_omni.training.config import EvaluateJob, TrainConfig
from schemas.errors import AmbientOmniError
from schemas.root import Root

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command: Callable[[Root, argparse.Namespace], str] = options.run
    try:
        answer = command(Root.open(options.root), options)
    except AmbientOmniError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{str(stop) or 'stopped; run the same command again to go on'}\n")
        return _INTERRUPTED
    # Under torchrun every process knows the answer.
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(answer + "\n")
    return 0


def _train(root: Root, options: argparse.Namespace) -> str:
    config = load_config(options.config, TrainConfig)
    if options.dry_run:
        from ambient_omni.training.plan import describe

        return describe(root, config)
    from ambient_omni.training.trainer import train

    run_id = train(root, config)
    return f"run {run_id} is in {root.runs / run_id}"


def _train_classifier(root: Root, options: argparse.Namespace) -> str:
    from ambient_omni.classifier.noise_classifier import TrainClassifierJob, train_classifier

    job = load_config(options.config, TrainClassifierJob)
    if options.dry_run:
        return resolved(job)
    classifier_id = train_classifier(
        root,
        job.classifier,
        pool_batches=job.pool_batches,
        reference_set=job.reference_set,
        transform=job.transform,
        question=job.question,
        latents=job.latents,
    )
    return f"classifier {classifier_id} is in {root.classifiers / classifier_id}"


def _generate(root: Root, options: argparse.Namespace) -> str:
    job = load_config(options.config, GenerateJob)
    if options.dry_run:
        return resolved(job)
    from ambient_omni.generation.job import generate

    count = generate(root, job)
    return f"{count} images are in {job.out}"


def _export(root: Root, options: argparse.Namespace) -> str:
    job = load_config(options.config, ExportJob)
    if options.dry_run:
        return resolved(job)
    from ambient_omni.generation.export_job import export

    return f"the pipeline is in {export(root, job)}"


def _evaluate(root: Root, options: argparse.Namespace) -> str:
    job = load_config(options.config, EvaluateJob)
    if options.dry_run:
        return resolved(job)
    from ambient_omni.evaluation import evaluate
    from ambient_omni.generation.job import checkpoint_path

    checkpoint = checkpoint_path(root, job.run_id, job.checkpoint)
    loss = evaluate(root, job.run_id, job.reference_set, checkpoint)
    return json.dumps(loss.model_dump(exclude={"per_image", "sample_rows"}), indent=1)


def _encode_latents(root: Root, options: argparse.Namespace) -> str:
    from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches

    job = load_config(options.config, EncodeLatentsJob)
    if options.dry_run:
        return resolved(job)
    packs = encode_batches(root, job)
    return "\n".join(f"{len(pack)} latents of batch {pack.batch} are packed" for pack in packs)


def _seen(root: Root, options: argparse.Namespace) -> str:
    from ambient_omni.training.lookup import samples_seen

    found = samples_seen(root, options.run_id, options.sample_ids)
    lines = [f"{name} {sighting}" for name, sighting in found.of.items()]
    return "\n".join([f"run {options.run_id} up to step {found.step}:", *lines])


def _average(root: Root, options: argparse.Namespace) -> str:
    from ambient_omni.training.reconstructed import reconstruct

    path = reconstruct(root, options.run_id, options.sigma_rel, options.images)
    return f"the average is the checkpoint {path.relative_to(root.runs / options.run_id)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ambient_omni",
        description="The learning side: noise classifiers, training, generation, evaluation. "
        "Also starts under torchrun.",
    )
    commands = parser.add_subparsers(title="commands", required=True)
    for name, run, model, text in (
        (
            "train",
            _train,
            "training.config:TrainConfig",
            "train a denoiser on annotated batches; resumes by itself",
        ),
        (
            "train-classifier",
            _train_classifier,
            "classifier.noise_classifier:TrainClassifierJob",
            "train a noise classifier, reference against pool",
        ),
        (
            "encode-latents",
            _encode_latents,
            "data.latent_packs:EncodeLatentsJob",
            "make latent packs of batches from their pixel packs",
        ),
        (
            "generate",
            _generate,
            "generation.config:GenerateJob",
            "generate images with a trained run",
        ),
        (
            "export",
            _export,
            "generation.config:ExportJob",
            "write a trained run as a pipeline folder of diffusers",
        ),
        (
            "evaluate",
            _evaluate,
            "training.config:EvaluateJob",
            "held-out denoising loss of a run on a reference set",
        ),
    ):
        command = _command(commands, name, run, text)
        command.add_argument("--config", type=Path, required=True, help="YAML file of settings")
        add_print_config(command, f"ambient_omni.{model}")
        command.add_argument(
            "--dry-run", action="store_true", help="print what would be done, and do nothing"
        )
    _add_seen(commands)
    _add_average(commands)
    return parser


def _add_seen(commands: Any) -> None:
    seen = _command(commands, "seen", _seen, "say which samples a run has trained on")
    seen.add_argument("--run", dest="run_id", required=True, help="id of the run")
    seen.add_argument("sample_ids", nargs="+", metavar="SAMPLE_ID", help="hash of an image's bytes")


def _add_average(commands: Any) -> None:
    text = "make a power-function average of any width from a run's snapshots"
    average = _command(commands, "average", _average, text)
    average.add_argument("--run", dest="run_id", required=True, help="id of the run")
    average.add_argument(
        "--sigma-rel", type=float, required=True, help="relative width, above 0, below 0.2887"
    )
    average.add_argument("--images", type=int, help="images seen by then; default: the last ones")


def _command(commands: Any, name: str, run: Callable[..., str], text: str) -> Any:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--root", type=Path, required=True, help="folder of the project")
    command.set_defaults(run=run)
    return command


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ambient_omni train|train-classifier|generate|evaluate --config FILE --root DIR``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ambient_omni.config import load_config, resolved
from ambient_omni.generation.config import GenerateJob
from ambient_omni.training.config import EvaluateJob, TrainConfig
from schemas.errors import AmbientOmniError
from schemas.root import Root

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command: Callable[[Root, Path, bool], str] = options.run
    try:
        answer = command(Root.open(options.root), options.config, options.dry_run)
    except AmbientOmniError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{str(stop) or 'stopped; run the same command again to go on'}\n")
        return _INTERRUPTED
    sys.stdout.write(answer + "\n")
    return 0


def _train(root: Root, file: Path, dry_run: bool) -> str:
    config = load_config(file, TrainConfig)
    if dry_run:
        from ambient_omni.training.plan import describe

        return describe(root, config)
    from ambient_omni.training.trainer import train

    run_id = train(root, config)
    return f"run {run_id} is in {root.runs / run_id}"


def _train_classifier(root: Root, file: Path, dry_run: bool) -> str:
    from ambient_omni.classifier.noise_classifier import TrainClassifierJob, train_classifier

    job = load_config(file, TrainClassifierJob)
    if dry_run:
        return resolved(job)
    classifier_id = train_classifier(
        root,
        job.classifier,
        pool_batches=job.pool_batches,
        reference_set=job.reference_set,
        transform=job.transform,
    )
    return f"classifier {classifier_id} is in {root.classifiers / classifier_id}"


def _generate(root: Root, file: Path, dry_run: bool) -> str:
    job = load_config(file, GenerateJob)
    if dry_run:
        return resolved(job)
    from ambient_omni.generation.job import generate

    count = generate(root, job)
    return f"{count} images are in {job.out}"


def _evaluate(root: Root, file: Path, dry_run: bool) -> str:
    job = load_config(file, EvaluateJob)
    if dry_run:
        return resolved(job)
    from ambient_omni.evaluation import evaluate

    loss = evaluate(root, job.run_id, job.reference_set)
    return json.dumps(loss.model_dump(exclude={"per_image", "sample_rows"}), indent=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ambient_omni",
        description="The learning side: noise classifiers, training, generation, evaluation. "
        "Also starts under torchrun.",
    )
    commands = parser.add_subparsers(title="commands", required=True)
    for name, run, text in (
        ("train", _train, "train a denoiser on annotated batches; resumes by itself"),
        ("train-classifier", _train_classifier, "train a noise classifier, reference against pool"),
        ("generate", _generate, "generate images with a trained run"),
        ("evaluate", _evaluate, "held-out denoising loss of a run on a reference set"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="YAML file of settings")
        command.add_argument("--root", type=Path, required=True, help="folder of the project")
        command.add_argument(
            "--dry-run", action="store_true", help="print what would be done, and do nothing"
        )
        command.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m pipelines JOB --root DIR --batch B`: one job on one batch, also under spark-submit."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ambient_omni.config_template import add_print_config
from pipelines import commands
from pipelines.job import JobReport
from schemas.errors import AmbientOmniError

if TYPE_CHECKING:
    Jobs = argparse._SubParsersAction[argparse.ArgumentParser]

_INTERRUPTED = 130
_BY_KIND = "by --kind"
"""Of a job whose settings depend on another option."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; return its exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], JobReport | None] = options.run
    try:
        report = run(options)
    except AmbientOmniError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing half done is visible, run the same command to go on\n")
        return _INTERRUPTED
    if report is None:
        return 0  # it has said what it had to say
    sys.stdout.write(_dry_line(report) if options.dry_run else report.line())
    sys.stdout.write("\n")
    return 0


def _dry_line(report: JobReport) -> str:
    todo, name = report.read - report.unchanged, f"{report.job} {report.batch}".strip()
    line = f"{name}: would do {todo} of {report.read}, the rest is current"
    return "; ".join([line, *report.notes])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description="Jobs that fill the tables, one batch at a time. A job that is run again "
        "does only what is missing or stale. Also starts under spark-submit.",
    )
    jobs = parser.add_subparsers(title="jobs", required=True, metavar="JOB")
    for add in (_add_sources, _add_measures, _add_pixels, _add_rules, _add_imports, _add_upkeep):
        add(jobs)
    return parser


def _add_sources(jobs: "Jobs") -> None:
    """Add the jobs that say which images there are."""
    ingest = _job(
        jobs,
        "ingest",
        commands.run_ingest,
        "bring images in as one batch",
        config="pipelines.ingest:IngestConfig",
    )
    ingest.add_argument("--source", required=True, help="folder, .tar shards or URL list")
    ingest.add_argument("--role", default="pool", choices=("pool", "reference", "evaluation"))
    ingest.add_argument(
        "--in-place",
        action="store_true",
        help="register tar shards where they lie, here or in an object store, without copying",
    )
    ingest.add_argument(
        "--replace-source",
        action="store_true",
        help="the batch may hold another source's images: these take their place",
    )
    references = _job(
        jobs,
        "references",
        commands.run_references,
        "divide a reference batch into trusted and validation",
    )
    references.add_argument("--validation-fraction", type=float, default=0.2)
    references.add_argument("--evaluation-batch", help="batch that only reports may look at")


def _add_measures(jobs: "Jobs") -> None:
    """Add the jobs that score, embed and compare images."""
    score = "pipelines.jobs.score:ScoreConfig"
    text = "scores and embeddings, one decoding pass"
    _job(jobs, "score", commands.run_score, text, config=score, spark=True)
    missing = "whatever scores and embeddings are missing or stale, of all batches"
    _job(jobs, "rescore", commands.run_rescore, missing, batch=False, config=score, spark=True)
    ood = _job(
        jobs,
        "ood",
        commands.run_ood,
        "distance to a reference set",
        config="pipelines.jobs.ood:OodConfig",
        spark=True,
    )
    ood.add_argument("--reference-set", default="trusted")
    equal = "clusters of equal images, over all batches"
    same = _job(jobs, "dedup", commands.run_dedup, equal, batch=False, config=_BY_KIND, spark=True)
    same.add_argument("--kind", choices=("exact", "perceptual", "semantic"), required=True)


def _add_pixels(jobs: "Jobs") -> None:
    """Add the jobs that make training packs and ask classifiers about them."""
    _job(
        jobs,
        "pack",
        commands.run_pack,
        "pixels for training under one transform",
        config="ambient_omni.data.transforms:Transform",
        spark=True,
    )
    curves = _job(jobs, "curves", commands.run_curves, "what a noise classifier says", spark=True)
    curves.add_argument("--classifier-id", required=True)
    curves.add_argument(
        "--annotator",
        help="how it is asked: grid, exhaustive, sequential, head, or a YAML file of one's "
        "settings (default: the classifier's own grid)",
    )
    once = "train crop classifiers and measure how much context denoising needs"
    _job(
        jobs,
        "windows",
        commands.run_windows,
        once,
        batch=False,
        config="ambient_omni.windows.config:WindowsJob",
    )
    crops = _job(jobs, "crops", commands.run_crops, "what a crop classifier says")
    crops.add_argument("--crop-classifier-id", required=True)
    crops.add_argument("--map-size", type=int, help="keep P(in domain) of each crop of this side")
    crops.add_argument("--draw", type=Path, metavar="FOLDER", help="draw some of the maps there")


def _add_rules(jobs: "Jobs") -> None:
    """Add the jobs that turn measurements into levels."""
    short = "short trainings that set a policy's thresholds by held-out loss and detail"
    _job(
        jobs,
        "pilot",
        commands.run_pilot,
        short,
        batch=False,
        config="pipelines.pilot.config:PilotConfig",
    )
    annotate = _job(
        jobs, "annotate", commands.run_annotate, "levels under a policy; touches no pixel"
    )
    policy = annotate.add_mutually_exclusive_group(required=True)
    policy.add_argument("--policy", type=Path, help="YAML file of a policy")
    policy.add_argument("--policy-id", help="a policy that is registered already")
    annotate.add_argument(
        "--freeze-on",
        nargs="+",
        metavar="BATCH",
        help="batches that the policy's thresholds are frozen on (default: --batch)",
    )


def _add_upkeep(jobs: "Jobs") -> None:
    """Add the jobs that keep tables small and take-downs complete."""
    _job(jobs, "compact", commands.run_compact, "rewrite tables into fewer files", batch=False)
    unneeded = "delete files that no kept or pinned version needs"
    vacuum = _job(jobs, "vacuum", commands.run_vacuum, unneeded, batch=False)
    vacuum.add_argument("--retention-hours", type=int, default=168)
    _job(
        jobs,
        "purge",
        commands.run_purge,
        "blank what was taken down, remove facts about it",
        batch=False,
    )


def _add_imports(jobs: "Jobs") -> None:
    """Add the jobs that bring in what others measured or decided."""
    scores = _import(
        jobs, "import-scores", commands.run_import_scores, "scores of a file, as a new version"
    )
    scores.add_argument("--column", nargs="+", help="which columns (default: all numbers)")
    scores.add_argument("--name", help="of the measure, of one column (default: the column's)")
    scores.add_argument(
        "--pack",
        default="external",
        help="pack whose columns they are, such as clip (default: measures of their own)",
    )
    levels = _import(
        jobs, "import-levels", commands.run_import_levels, "levels of a file, as an external policy"
    )
    levels.add_argument("--noise-space", required=True, help="what the levels are measured in")
    levels.add_argument("--name", default="levels", help="what the policy is called")
    levels.add_argument("--sigma-min", default="sigma_min", metavar="COLUMN")
    levels.add_argument("--sigma-max", metavar="COLUMN", help="(default: sigma_max, if there)")
    vectors = _import(
        jobs,
        "import-embeddings",
        commands.run_import_embeddings,
        "vectors of a file, as a new encoder",
    )
    vectors.add_argument("--column", default="embedding")
    vectors.add_argument("--name", required=True, help="of the encoder")


def _import(
    jobs: "Jobs",
    name: str,
    run: Callable[[argparse.Namespace], JobReport | None],
    text: str,
) -> argparse.ArgumentParser:
    job = _job(jobs, name, run, text, spark=True)
    job.add_argument(
        "--file", type=Path, required=True, help="csv, tsv, parquet, or safetensors of CLIP-IQA"
    )
    job.add_argument("--key-column", help="column that names images (default: the usual names)")
    job.add_argument(
        "--keys",
        choices=("sample_id", "url", "name", "pixels", "order"),
        help="what it holds (default: by its name)",
    )
    return job


def _job(
    jobs: "Jobs",
    name: str,
    run: Callable[[argparse.Namespace], JobReport | None],
    text: str,
    *,
    batch: bool = True,
    config: str | None = None,
    spark: bool = False,
) -> argparse.ArgumentParser:
    job = jobs.add_parser(name, help=text, description=text)
    job.add_argument("--root", type=Path, required=True, help="folder of the project")
    if batch:
        job.add_argument("--batch", required=True, help="name of the ingest batch")
    job.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    if config:
        job.add_argument("--config", type=Path, help="YAML file of the job's settings")
        if config != _BY_KIND:
            add_print_config(job, config)
    if spark:
        job.add_argument("--master", help="Spark master URL (default: this machine)")
    job.set_defaults(run=run, job_name=name)
    return job


if __name__ == "__main__":
    sys.exit(main())

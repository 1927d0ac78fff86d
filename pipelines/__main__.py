"""`python -m pipelines JOB --root DIR --batch B`: one job on one batch, also under spark-submit."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from pipelines.job import JobReport
from pipelines.spark import SparkSettings
from schemas.errors import AmbientOmniError, BadInput
from schemas.root import Root

if TYPE_CHECKING:
    from pipelines.imports import ImportedFile

    Jobs = argparse._SubParsersAction[argparse.ArgumentParser]

Config = TypeVar("Config", bound=BaseModel)

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; return its exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], JobReport] = options.run
    try:
        report = run(options)
    except AmbientOmniError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing half done is visible, run the same command to go on\n")
        return _INTERRUPTED
    sys.stdout.write(_dry_line(report) if options.dry_run else report.line())
    sys.stdout.write("\n")
    return 0


def _dry_line(report: JobReport) -> str:
    todo, name = report.read - report.unchanged, f"{report.job} {report.batch}".strip()
    line = f"{name}: would do {todo} of {report.read}, the rest is current"
    return "; ".join([line, *report.notes])


def _ingest(options: argparse.Namespace) -> JobReport:
    from pipelines.ingest import IngestConfig, ingest

    config = _config(options, IngestConfig)
    if options.in_place:
        config = config.model_copy(update={"in_place": True})
    if options.dry_run:
        from pipelines.ingest.source import open_source

        kind = open_source(options.source, config).kind
        sys.stdout.write(f"{options.source} is a {kind}; settings: {config.model_dump_json()}\n")
        return JobReport("ingest", options.batch)
    root = Root.create(options.root)
    return ingest(root, options.batch, options.source, config, role=options.role)


def _references(options: argparse.Namespace) -> JobReport:
    from pipelines.references import define_reference_sets

    root = Root.open(options.root)
    if options.dry_run:
        samples = root.tables.read("samples", ["sample_row"], {"ingest_batch": options.batch})
        return JobReport("references", options.batch, read=samples.num_rows)
    return define_reference_sets(
        root,
        options.batch,
        validation_fraction=options.validation_fraction,
        evaluation_batch=options.evaluation_batch,
    )


def _score(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.score import ScoreConfig, score

    config = _config(options, ScoreConfig)
    return score(
        Root.open(options.root),
        options.batch,
        config,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _rescore(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.score import ScoreConfig, rescore

    config = _config(options, ScoreConfig)
    root = Root.open(options.root)
    return rescore(root, config, settings=_spark(options), dry_run=options.dry_run)


def _ood(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.ood import OodConfig, ood

    root, config = Root.open(options.root), _config(options, OodConfig)
    return ood(
        root,
        options.batch,
        options.reference_set,
        config,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _pack(options: argparse.Namespace) -> JobReport:
    from ambient_omni.data.transforms import Transform
    from pipelines.jobs.pack import build_pack

    transform = _config(options, Transform)
    return build_pack(
        Root.open(options.root),
        options.batch,
        transform,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _curves(options: argparse.Namespace) -> JobReport:
    from ambient_omni.classifier.config import read_annotator
    from pipelines.jobs.curves import curves

    root = Root.open(options.root)
    return curves(
        root,
        options.batch,
        options.classifier_id,
        annotator=read_annotator(options.annotator) if options.annotator else None,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _import_scores(options: argparse.Namespace) -> JobReport:
    from pipelines.imports import import_scores

    return import_scores(
        Root.open(options.root),
        options.batch,
        _imported_file(options),
        options.column or (),
        name=options.name,
        pack=options.pack,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _import_levels(options: argparse.Namespace) -> JobReport:
    from pipelines.imports import import_levels

    return import_levels(
        Root.open(options.root),
        options.batch,
        _imported_file(options),
        noise_space=options.noise_space,
        name=options.name,
        sigma_min_column=options.sigma_min,
        sigma_max_column=options.sigma_max,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _import_embeddings(options: argparse.Namespace) -> JobReport:
    from pipelines.imports import import_embeddings

    return import_embeddings(
        Root.open(options.root),
        options.batch,
        _imported_file(options),
        options.column,
        name=options.name,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def _imported_file(options: argparse.Namespace) -> "ImportedFile":
    from pipelines.imports import ImportedFile

    return ImportedFile(options.file, options.key_column, options.keys)


def _dedup(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.dedup import KINDS, dedup

    config = _config(options, KINDS[options.kind])
    root = Root.open(options.root)
    return dedup(root, config, settings=_spark(options), dry_run=options.dry_run)


def _compact(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.upkeep import compact_all

    return compact_all(Root.open(options.root), dry_run=options.dry_run)


def _vacuum(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.upkeep import vacuum_all

    root = Root.open(options.root)
    return vacuum_all(root, retention_hours=options.retention_hours, dry_run=options.dry_run)


def _purge(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.upkeep import purge_all

    return purge_all(Root.open(options.root), dry_run=options.dry_run)


def _windows(options: argparse.Namespace) -> JobReport:
    from ambient_omni.windows.config import WindowsJob
    from pipelines.jobs.windows import windows

    root = Root.open(options.root)
    return windows(root, _stated_config(options, WindowsJob), dry_run=options.dry_run)


def _crops(options: argparse.Namespace) -> JobReport:
    from pipelines.jobs.windows import crops, draw_maps

    root, which = Root.open(options.root), options.crop_classifier_id
    size = options.map_size
    if options.draw is not None and size is None:
        raise BadInput("--draw needs --map-size, the side of the crops to draw")
    report = crops(root, options.batch, which, map_size=size, dry_run=options.dry_run)
    if options.draw is not None and not options.dry_run:
        for file in draw_maps(root, options.batch, which, size, options.draw):
            sys.stdout.write(f"{file}\n")
    return report


def _pilot(options: argparse.Namespace) -> JobReport:
    from pipelines.pilot.config import PilotConfig
    from pipelines.pilot.report import job_report
    from pipelines.pilot.run import calibrate, cost

    root, config = Root.open(options.root), _stated_config(options, PilotConfig)
    sys.stdout.write(cost(root, config) + "\n")
    if options.dry_run:
        return JobReport("pilot", "", read=len(config.thresholds) + 1)
    sys.stdout.flush()
    return job_report(calibrate(root, config), sys.stdout)


def _annotate(options: argparse.Namespace) -> JobReport:
    from pipelines import policies
    from pipelines.jobs.annotate import annotate
    from pipelines.policy_files import policy_from_file

    root = Root.open(options.root)
    if options.policy_id is not None:
        policy = policies.load(root, options.policy_id)
    else:
        policy = policy_from_file(root, options.policy, options.freeze_on or [options.batch])
    report = annotate(root, options.batch, policy, dry_run=options.dry_run)
    sys.stdout.write(f"policy {policy.policy_id}\n")
    return report


def _spark(options: argparse.Namespace) -> SparkSettings:
    return SparkSettings(master=options.master)


def _config(options: argparse.Namespace, kind: type[Config]) -> Config:
    if options.config is None:
        return kind()
    from ambient_omni.config import load_config

    return load_config(options.config, kind)


def _stated_config(options: argparse.Namespace, kind: type[Config]) -> Config:
    if options.config is None:
        raise BadInput(f"{options.job_name} needs --config: it cannot know the batches")
    return _config(options, kind)


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
    ingest = _job(jobs, "ingest", _ingest, "bring images in as one batch", config=True)
    ingest.add_argument("--source", required=True, help="folder, .tar shards or URL list")
    ingest.add_argument("--role", default="pool", choices=("pool", "reference", "evaluation"))
    ingest.add_argument(
        "--in-place",
        action="store_true",
        help="register tar shards of this machine where they lie, without copying",
    )
    references = _job(
        jobs, "references", _references, "divide a reference batch into trusted and validation"
    )
    references.add_argument("--validation-fraction", type=float, default=0.2)
    references.add_argument("--evaluation-batch", help="batch that only reports may look at")


def _add_measures(jobs: "Jobs") -> None:
    """Add the jobs that score, embed and compare images."""
    both = {"config": True, "spark": True}
    _job(jobs, "score", _score, "scores and embeddings, one decoding pass", **both)
    missing = "whatever scores and embeddings are missing or stale, of all batches"
    _job(jobs, "rescore", _rescore, missing, batch=False, **both)
    ood = _job(jobs, "ood", _ood, "distance to a reference set", **both)
    ood.add_argument("--reference-set", default="trusted")
    equal = "clusters of equal images, over all batches"
    same = _job(jobs, "dedup", _dedup, equal, batch=False, **both)
    same.add_argument("--kind", choices=("exact", "perceptual", "semantic"), required=True)


def _add_pixels(jobs: "Jobs") -> None:
    """Add the jobs that make training packs and ask classifiers about them."""
    _job(jobs, "pack", _pack, "pixels for training under one transform", config=True, spark=True)
    curves = _job(jobs, "curves", _curves, "what a noise classifier says", spark=True)
    curves.add_argument("--classifier-id", required=True)
    curves.add_argument(
        "--annotator",
        help="how it is asked: grid, exhaustive, sequential, head, or a YAML file of one's "
        "settings (default: the classifier's own grid)",
    )
    once = "train crop classifiers and measure how much context denoising needs"
    _job(jobs, "windows", _windows, once, batch=False, config=True)
    crops = _job(jobs, "crops", _crops, "what a crop classifier says")
    crops.add_argument("--crop-classifier-id", required=True)
    crops.add_argument("--map-size", type=int, help="keep P(in domain) of each crop of this side")
    crops.add_argument("--draw", type=Path, metavar="FOLDER", help="draw some of the maps there")


def _add_rules(jobs: "Jobs") -> None:
    """Add the jobs that turn measurements into levels."""
    short = "short trainings that set a policy's thresholds by held-out loss and detail"
    _job(jobs, "pilot", _pilot, short, batch=False, config=True)
    annotate = _job(jobs, "annotate", _annotate, "levels under a policy; touches no pixel")
    policy = annotate.add_mutually_exclusive_group(required=True)
    policy.add_argument("--policy", type=Path, help="YAML file of a policy")
    policy.add_argument("--policy-id", help="a policy that is registered already")
    annotate.add_argument(
        "--freeze-on",
        nargs="+",
        metavar="BATCH",
        help="batches that a quality_rank's border is frozen on (default: --batch)",
    )


def _add_upkeep(jobs: "Jobs") -> None:
    """Add the jobs that keep tables small and take-downs complete."""
    _job(jobs, "compact", _compact, "rewrite tables into fewer files", batch=False)
    unneeded = "delete files that no kept or pinned version needs"
    vacuum = _job(jobs, "vacuum", _vacuum, unneeded, batch=False)
    vacuum.add_argument("--retention-hours", type=int, default=168)
    _job(jobs, "purge", _purge, "blank what was taken down, remove facts about it", batch=False)


def _add_imports(jobs: "Jobs") -> None:
    """Add the jobs that bring in what others measured or decided."""
    scores = _import(jobs, "import-scores", _import_scores, "scores of a file, as a new version")
    scores.add_argument("--column", nargs="+", help="which columns (default: all numbers)")
    scores.add_argument("--name", help="of the measure, of one column (default: the column's)")
    scores.add_argument(
        "--pack",
        default="external",
        help="pack whose columns they are, such as clip (default: measures of their own)",
    )
    levels = _import(
        jobs, "import-levels", _import_levels, "levels of a file, as an external policy"
    )
    levels.add_argument("--noise-space", required=True, help="what the levels are measured in")
    levels.add_argument("--name", default="levels", help="what the policy is called")
    levels.add_argument("--sigma-min", default="sigma_min", metavar="COLUMN")
    levels.add_argument("--sigma-max", metavar="COLUMN", help="(default: sigma_max, if there)")
    vectors = _import(
        jobs, "import-embeddings", _import_embeddings, "vectors of a file, as a new encoder"
    )
    vectors.add_argument("--column", default="embedding")
    vectors.add_argument("--name", required=True, help="of the encoder")


def _import(
    jobs: "Jobs",
    name: str,
    run: Callable[[argparse.Namespace], JobReport],
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
    run: Callable[[argparse.Namespace], JobReport],
    text: str,
    *,
    batch: bool = True,
    config: bool = False,
    spark: bool = False,
) -> argparse.ArgumentParser:
    job = jobs.add_parser(name, help=text, description=text)
    job.add_argument("--root", type=Path, required=True, help="folder of the project")
    if batch:
        job.add_argument("--batch", required=True, help="name of the ingest batch")
    job.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    if config:
        job.add_argument("--config", type=Path, help="YAML file of the job's settings")
    if spark:
        job.add_argument("--master", help="Spark master URL (default: this machine)")
    job.set_defaults(run=run, job_name=name)
    return job


if __name__ == "__main__":
    sys.exit(main())

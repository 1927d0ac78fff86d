"""What each job of `python -m pipelines` does with its options."""

import argparse
import sys
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from pipelines.job import JobReport
from pipelines.spark import SparkSettings
from schemas.errors import BadInput
from schemas.known import require_batches
from schemas.root import Root

if TYPE_CHECKING:
    from pipelines.imports import ImportedFile

Config = TypeVar("Config", bound=BaseModel)


def run_ingest(options: argparse.Namespace) -> JobReport | None:
    """Bring images in as one batch; makes the root where there is none. None: a dry run."""
    from pipelines.ingest import IngestConfig, ingest
    from pipelines.ingest.register import check_batch_name
    from pipelines.ingest.source import open_source

    config = _config(options, IngestConfig)
    if options.in_place:
        config = config.model_copy(update={"in_place": True})
    # What cannot be ingested must not leave an empty root behind.
    check_batch_name(options.batch)
    kind = open_source(options.source, config).kind
    if options.dry_run:
        sys.stdout.write(f"{options.source} is a {kind}; settings: {config.model_dump_json()}\n")
        return None
    root = Root.create(options.root)
    return ingest(
        root,
        options.batch,
        options.source,
        config,
        role=options.role,
        replace_source=options.replace_source,
    )


def run_references(options: argparse.Namespace) -> JobReport:
    """Define trusted, validation and evaluation sets."""
    from pipelines.references import define_reference_sets

    root = Root.open(options.root)
    if options.dry_run:
        require_batches(root.tables, [options.batch])
        samples = root.tables.read("samples", ["sample_row"], {"ingest_batch": options.batch})
        return JobReport("references", options.batch, read=samples.num_rows)
    return define_reference_sets(
        root,
        options.batch,
        validation_fraction=options.validation_fraction,
        evaluation_batch=options.evaluation_batch,
    )


def run_score(options: argparse.Namespace) -> JobReport:
    """Score and embed a batch."""
    from pipelines.jobs.score import ScoreConfig, score

    config = _config(options, ScoreConfig)
    return score(
        Root.open(options.root),
        options.batch,
        config,
        settings=_spark(options),
        dry_run=options.dry_run,
    )


def run_rescore(options: argparse.Namespace) -> JobReport:
    """Score and embed what is missing or stale, of all batches."""
    from pipelines.jobs.score import ScoreConfig, rescore

    config = _config(options, ScoreConfig)
    root = Root.open(options.root)
    return rescore(root, config, settings=_spark(options), dry_run=options.dry_run)


def run_ood(options: argparse.Namespace) -> JobReport:
    """Measure the distance of a batch to a reference set."""
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


def run_pack(options: argparse.Namespace) -> JobReport:
    """Make the training pack of a batch."""
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


def run_curves(options: argparse.Namespace) -> JobReport:
    """Ask a noise classifier about a batch."""
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


def run_import_scores(options: argparse.Namespace) -> JobReport:
    """Bring in scores of a file."""
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


def run_import_levels(options: argparse.Namespace) -> JobReport:
    """Bring in levels of a file."""
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


def run_import_embeddings(options: argparse.Namespace) -> JobReport:
    """Bring in embeddings of a file."""
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


def run_dedup(options: argparse.Namespace) -> JobReport:
    """Find clusters of equal images."""
    from pipelines.jobs.dedup import KINDS, dedup

    config = _config(options, KINDS[options.kind])
    root = Root.open(options.root)
    return dedup(root, config, settings=_spark(options), dry_run=options.dry_run)


def run_compact(options: argparse.Namespace) -> JobReport:
    """Rewrite tables into fewer files."""
    from pipelines.jobs.upkeep import compact_all

    return compact_all(Root.open(options.root), dry_run=options.dry_run)


def run_vacuum(options: argparse.Namespace) -> JobReport:
    """Delete files that nobody needs."""
    from pipelines.jobs.upkeep import vacuum_all

    root = Root.open(options.root)
    return vacuum_all(root, retention_hours=options.retention_hours, dry_run=options.dry_run)


def run_purge(options: argparse.Namespace) -> JobReport:
    """Remove what was taken down."""
    from pipelines.jobs.upkeep import purge_all

    return purge_all(Root.open(options.root), dry_run=options.dry_run)


def run_windows(options: argparse.Namespace) -> JobReport:
    """Train crop classifiers and measure a receptive field."""
    from ambient_omni.windows.config import WindowsJob
    from pipelines.jobs.windows import windows

    root = Root.open(options.root)
    return windows(root, _stated_config(options, WindowsJob), dry_run=options.dry_run)


def run_crops(options: argparse.Namespace) -> JobReport:
    """Ask a crop classifier about a batch; draw maps if asked."""
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


def run_pilot(options: argparse.Namespace) -> JobReport:
    """Train pilots after telling what they cost; print what they found."""
    from pipelines.pilot.config import PilotConfig
    from pipelines.pilot.report import job_report
    from pipelines.pilot.run import calibrate, cost

    root, config = Root.open(options.root), _stated_config(options, PilotConfig)
    sys.stdout.write(cost(root, config) + "\n")
    if options.dry_run:
        return JobReport("pilot", "", read=len(config.thresholds) + 1)
    sys.stdout.flush()
    return job_report(calibrate(root, config), sys.stdout)


def run_annotate(options: argparse.Namespace) -> JobReport:
    """Apply a policy to a batch."""
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

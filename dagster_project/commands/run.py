"""`ambient-omni run`: note what is asked for, then walk the graph."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dagster_project.request import (
    EVALUATION,
    REFERENCE,
    BatchRequest,
    Request,
    absolute_source,
    batch_name_of,
)
from schemas.errors import AmbientOmniError, BadInput
from schemas.root import ROOT_FILE, Root

if TYPE_CHECKING:
    from dagster_project.recipe import Recipe

DEFAULT_RECIPE = "default"


def run(options: argparse.Namespace) -> int:
    """Run the command with parsed options; return the exit code."""
    batches = batches_of(options.source, options.source_name, options.reference, options.evaluation)
    existing = (options.root / ROOT_FILE).exists()
    if not existing:
        _require_both(batches, options.root)
    known = Request.load(Root.open(options.root)) if existing else None
    request = merged(
        known,
        batches,
        ingested=_ingested(options.root) if existing else frozenset(),
        recipe=options.recipe,
        truth=options.truth,
        labels_from_folders=options.labels_from_folders,
    )
    _require_both(request.batches, options.root)
    return execute(options.root, request, until=options.until, dry_run=options.dry_run)


def execute(root_path: Path, request: Request, *, until: str | None, dry_run: bool) -> int:
    """Walk the graph for a request, or only say what would be done."""
    _check_sources(request)
    if dry_run:
        sys.stdout.write(describe_plan(request, until))
        return 0
    root = Root.create(root_path)
    request.save(root)
    from dagster_project.runner import Runner

    try:
        found = Runner(root, request).run(until)
    except AmbientOmniError:
        # A source that could not be used must not stand in the way of a better one.
        _without_failed(root, request).save(root)
        raise
    if "report" in found:
        sys.stdout.write(f"report: {found['report']}\n")
    sys.stdout.write(f"look around: ambient-omni ui --root {root_path}\n")
    return 0


def batches_of(
    sources: Sequence[str],
    names: Sequence[str],
    reference: str | None,
    evaluation: str | None,
) -> list[BatchRequest]:
    """Return the batches that the options name.

    Raises:
        BadInput: a path does not exist, or there are more names than sources.
    """
    if len(names) > len(sources):
        raise BadInput(f"{len(names)} --source-name for {len(sources)} --source; give one for each")
    found = []
    if reference:
        found.append((REFERENCE, REFERENCE, reference))
    if evaluation:
        found.append((EVALUATION, EVALUATION, evaluation))
    for number, source in enumerate(sources):
        name = names[number] if number < len(names) else batch_name_of(source)
        found.append((name, "pool", source))
    return [
        BatchRequest.model_validate({"name": name, "role": role, "source": absolute_source(source)})
        for name, role, source in found
    ]


def merged(
    known: Request | None,
    batches: Iterable[BatchRequest],
    *,
    ingested: frozenset[str] = frozenset(),
    recipe: str | None = None,
    truth: str | None = None,
    labels_from_folders: bool = False,
) -> Request:
    """Return the root's request with what the command line adds or changes.

    Raises:
        BadInput: a batch name is taken, the recipe is wrong, or the truth file does not exist.
    """
    values = dict(known.recipe) if known and not recipe else _recipe(recipe or DEFAULT_RECIPE)
    if labels_from_folders:
        values["ingest"] = values["ingest"] | {"labels_from_folders": True}
    if truth is not None and not Path(truth).is_file():
        raise BadInput(f"--truth {truth} does not exist; name a Parquet file, or leave it out")
    # A batch that never came to be may be asked for again from another source.
    standing = [b for b in known.batches if b.name in ingested] if known else []
    new_names = {b.name for b in batches}
    waiting = [b for b in known.batches if b.name not in ingested | new_names] if known else []
    request = Request(
        recipe=values,
        truth=str(Path(truth).absolute()) if truth else (known.truth if known else None),
    )
    return request.with_batches([*standing, *waiting]).with_batches(batches)


def describe_plan(request: Request, until: str | None) -> str:
    """Return the resolved recipe and the steps, for `--dry-run`."""
    from dagster_project.runner import plan

    recipe: Recipe = request.full_recipe
    lines = ["# recipe", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), "# steps"]
    work = plan(request, until)
    sources = {batch.name: batch.source for batch in request.batches}
    for number, (step, partition) in enumerate(work, 1):
        source = sources.get(partition or "", "") if step.name == "ingest" else ""
        lines.append(f"[{number}/{len(work)}] {step.title} {partition or ''} {source}".rstrip())
    return "\n".join(lines) + "\n"


def _recipe(name: str) -> dict[str, Any]:
    from dagster_project.recipe import load_recipe

    return load_recipe(name).model_dump(mode="json")


def _require_both(batches: Sequence[BatchRequest], root: Path) -> None:
    roles = {batch.role for batch in batches}
    missing = [
        option
        for role, option in (("pool", "--source"), ("reference", "--reference"))
        if role not in roles
    ]
    if missing:
        raise BadInput(f"{root} has no {' and no '.join(missing)} yet; name one")


def _check_sources(request: Request) -> None:
    """Look at every source before anything is written: cheap, and an empty folder shows here."""
    from pipelines.ingest.source import open_source

    for batch in request.batches:
        if Path(batch.source).exists():  # an ingested batch may have lost its source since
            open_source(batch.source, request.full_recipe.ingest)


def _ingested(root: Path) -> frozenset[str]:
    rows = Root.open(root).tables.read("ingest_batches", ["ingest_batch"])
    return frozenset(rows["ingest_batch"].to_pylist())


def _without_failed(root: Root, request: Request) -> Request:
    there = _ingested(root.path)
    return request.model_copy(
        update={"batches": tuple(b for b in request.batches if b.name in there)}
    )

"""Jobs that a person starts from the web page, and that sensors and schedules start by themselves.

Each walks assets in this very process; every asset's run stands in the history as one of its own.
"""

from typing import Any, cast

import dagster as dg
from pydantic import Field

from dagster_project.defs.project import Project
from dagster_project.operations.config import Role
from dagster_project.operations.notices import Notice, notify
from schemas.errors import AmbientOmniError, ContractViolation

BATCH_TAG = "ambient-omni/batch"


class NewBatch(dg.Config):
    """A batch to bring in."""

    name: str = Field(description="letters, digits, '_', '.', '-'; also its partition's key")
    source: str = Field(
        default="",
        description="a folder, a .tar, a pattern of them, or a list of URLs (csv, tsv, jsonl, "
        "parquet, txt); empty: a batch that is known already",
    )
    role: str = Field(default="pool", description="pool, reference or evaluation")
    ingest: dict[str, Any] = Field(
        default={},
        description="settings of ingest that differ from the recipe's, for example "
        "labels_from_folders: true, source_name: flickr, download: {url_column: link}",
    )
    until: str = Field(
        default="annotate", description="annotate, or stop earlier: ingest, score; or nothing"
    )


class Rescore(dg.Config):
    """What to compute anew."""

    until: str = Field(default="annotate", description="last step of the graph that is looked at")


class Candidate(dg.Config):
    """A new noise classifier."""

    promote: str = Field(
        default="",
        description="rule: at once, if it beats the promoted one; person: never; empty: as the "
        "recipe's operations.classifier.promotion says",
    )


class Promotion(dg.Config):
    """Which noise classifier grades from now on."""

    classifier_id: str = Field(default="", description="empty: the newest candidate")
    force: bool = Field(default=False, description="also if it does not beat the promoted one")
    refresh: bool = Field(default=True, description="grade and annotate all batches with it")


class _RunLog:
    """Lines of a walk as messages of the run."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._log = context.log

    def write(self, text: str) -> None:
        if text.strip():
            self._log.info(text.strip())

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@dg.op(description="Registers a folder, shards or a URL list as a batch and brings it to levels.")
def bring_in_batch(
    context: dg.OpExecutionContext, config: NewBatch, project: Project
) -> dict[str, Any]:
    """Ask for the batch, then walk its steps."""
    from dagster_project.operations.batches import FOLLOWING, chain_of, register_batch
    from dagster_project.runner import add_partitions
    from dagster_project.steps import INGEST_BATCH

    root = project.root
    with refusals():
        if config.until not in FOLLOWING:
            raise dg.Failure(f"until {config.until!r} is none of {', '.join(FOLLOWING)}")
        # An unknown role is refused by name.
        role = cast(Role, config.role)
        batch = register_batch(root, config.name, config.source, role, config.ingest)
        add_partitions(context.instance, INGEST_BATCH, [batch.name])
        context.instance.add_run_tags(context.run_id, {BATCH_TAG: batch.name})
        context.log.info(f"batch {batch.name}: {batch.source} as {batch.role}")
        found: dict[str, Any] = {}
        if FOLLOWING[config.until]:
            request = project.request
            work = chain_of(root, request, batch.name, FOLLOWING[config.until])
            found = _walk(context, project, work)
    held = project.request.is_held(batch.name)
    if held:
        _tell_held(project, batch.name)
    images = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch.name}).num_rows
    context.add_output_metadata({"batch": batch.name, "images": images, "held_back": held})
    return {"batch": batch.name, "images": images, "line": found.get("line", "")}


@dg.op(description="Computes what is new or stale in the tables, and nothing else.")
def rescore_stale(context: dg.OpExecutionContext, config: Rescore, project: Project) -> list[str]:
    """Walk what the jobs themselves call stale."""
    with refusals():
        done = _runner(context, project).refresh(config.until)
    lines = [f"{step.title} {partition or ''}: {why}" for step, partition, why in done]
    context.add_output_metadata({"done": len(done), "what": "; ".join(lines) or "nothing"})
    return lines


@dg.op(
    description="Trains a noise classifier on the present pool and holds it against the old one."
)
def train_candidate_classifier(
    context: dg.OpExecutionContext, config: Candidate, project: Project
) -> dict[str, Any]:
    """Train; refuse without its positive control; compare; propose or promote."""
    from dagster_project.operations import classifiers

    root, request = project.root, project.request
    recipe, life = request.full_recipe, request.operations.classifier
    space = recipe.noise_space
    with refusals():
        candidate = classifiers.train_candidate(root, request)
        promoted, rival = classifiers.promoted_id(root, space), classifiers.rival_id(root, space)
        found: dict[str, Any] = {"candidate": candidate, "promoted": promoted or "none"}
        beats = rival is None
        if rival is not None and rival != candidate:
            result = classifiers.compare(root, request, candidate, rival, life.max_images)
            beats = result.beats(life.min_gain)
            found |= {"gain": result.gain, "standard_error": result.standard_error}
        found["beats"] = beats
        by_rule = (config.promote or life.promotion) == "rule"
        if candidate != promoted and beats and by_rule:
            classifiers.promote(root, candidate, space, life)
            found["promoted"] = candidate
            _runner(context, project).refresh()
    if found["promoted"] != candidate:
        _propose(project, candidate, found)
    context.add_output_metadata({name: str(value) for name, value in found.items()})
    return found


@dg.op(description="Promotes a candidate; curves and levels of all batches follow.")
def promote_classifier(
    context: dg.OpExecutionContext, config: Promotion, project: Project
) -> dict[str, Any]:
    """Promote, then grade and annotate with it."""
    with refusals():
        found = promote_now(project, config.classifier_id, force=config.force)
        if config.refresh:
            _runner(context, project).refresh()
    context.add_output_metadata({name: str(value) for name, value in found.items()})
    return found


def promote_now(project: Project, classifier_id: str, *, force: bool) -> dict[str, Any]:
    """Promote a classifier; return its id, the retired one's and the gain.

    Raises:
        AmbientOmniError: there is none such, or it does not beat the promoted one.
    """
    from dagster_project.operations import classifiers

    root, request = project.root, project.request
    life, space = request.operations.classifier, request.full_recipe.noise_space
    chosen = classifier_id or classifiers.newest_candidate(root, space)
    before = classifiers.rival_id(root, space)
    result = None
    if before not in (None, chosen) and not force:
        result = classifiers.compare(root, request, chosen, str(before), life.max_images)
    retired = classifiers.promote(root, chosen, space, life, result)
    found: dict[str, Any] = {"promoted": chosen, "retired": retired or "none"}
    return found if result is None else found | {"gain": round(result.gain, 4)}


# When the process of such a run is killed, the daemon starts the run again; every step skips what
# is done. (A run that fails by itself is not: see `instance.py`.)
RESTARTED = {"dagster/max_retries": "2"}


@dg.job(description="Bring in a new batch: name, source, role, settings of ingest.", tags=RESTARTED)
def new_batch() -> None:
    """One op."""
    bring_in_batch()


@dg.job(description="Compute what is new or stale: scores, curves, levels.", tags=RESTARTED)
def rescore() -> None:
    """One op."""
    rescore_stale()


@dg.job(description="Train a candidate for the noise classifier and compare it.")
def candidate() -> None:
    """One op."""
    train_candidate_classifier()


@dg.job(description="Promote a noise classifier and refresh curves and levels.")
def promote() -> None:
    """One op."""
    promote_classifier()


class refusals:
    """What a person can mend fails the run in one line, without retries."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ContractViolation):
            raise dg.Failure(f"held back: {error}", allow_retries=False) from error
        if isinstance(error, AmbientOmniError):
            raise dg.Failure(str(error), allow_retries=False) from error


def _runner(context: dg.OpExecutionContext, project: Project) -> Any:
    from dagster_project.runner import PARENT_TAG, Runner

    return Runner(
        project.root,
        project.request,
        out=_RunLog(context),
        instance=context.instance,
        tags={PARENT_TAG: context.run_id},
    )


def _walk(context: dg.OpExecutionContext, project: Project, work: Any) -> dict[str, Any]:
    found: dict[str, Any] = _runner(context, project).walk(work)
    return found


def _tell_held(project: Project, batch: str) -> None:
    verdict = project.request.verdicts[batch]
    notice = Notice(
        "batch_held",
        f"batch {batch} is held back",
        f"It {verdict.why}. Look at it; `ambient-omni accept {batch} --why ...` lets it in.",
        {"batch": batch},
    )
    notify(project.root, project.operations.notify, notice)


def _propose(project: Project, candidate: str, found: dict[str, Any]) -> None:
    gain = f", gain {found['gain']:.3f} +- {found['standard_error']:.3f}" if "gain" in found else ""
    notice = Notice(
        "candidate_ready",
        f"noise classifier {candidate} is a candidate{gain}",
        "It passed its positive control and "
        + ("beats" if found["beats"] else "does not beat")
        + f" the promoted one. `ambient-omni promote {candidate}` lets it grade.",
        {"classifier_id": candidate},
    )
    notify(project.root, project.operations.notify, notice)

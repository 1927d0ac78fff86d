"""What a root was asked for: its batches, and the recipe with every value spelt out.

`ambient-omni run` writes it once; the served graph reads it, so that a person who presses
"Materialize" gets exactly what the command did.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dagster_project.operations.config import OperationsConfig, Role
from schemas.errors import BadInput, JobAlreadyRunning
from schemas.root import Root, write_json

if TYPE_CHECKING:
    from dagster_project.recipe import Recipe
    from pipelines.ingest.config import IngestConfig

FILE = "request.json"
REFERENCE, EVALUATION = "reference", "evaluation"
LOCK = ("request", "root")
WAIT_SECONDS = 30.0


class BatchRequest(BaseModel):
    """One ingest batch: its name, what it is for, and the folder, shards or list it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role
    source: str
    # Settings of ingest that differ from the recipe's.
    ingest: dict[str, Any] = Field(default_factory=dict)
    # Batches of one stream are compared with each other.
    stream: str = ""


class Verdict(BaseModel):
    """Whether a batch may be used, by a check or by a person.

    What is held back stays out of all that follows it: reference of drift, classifier, training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["held", "accepted"]
    why: str
    by: Literal["check", "person"] = "check"
    # What the batch was made from when a check accepted it: other images are judged anew.
    images: str = ""


class Request(BaseModel):
    """Everything that a run needs beside the root.

    Attributes:
        batches: in order of arrival; at most one reference and one evaluation batch.
        recipe: the recipe's values; kept as plain values so that reading a request is cheap.
        truth: Parquet file of what was done to the images; only the report reads it.
        verdicts: batches that were held back, or accepted by a person, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batches: tuple[BatchRequest, ...] = ()
    recipe: dict[str, Any]
    truth: str | None = None
    verdicts: dict[str, Verdict] = Field(default_factory=dict)

    @classmethod
    def load(cls, root: Root) -> "Request | None":
        """Return the request of a root, None where nothing was asked for yet.

        Raises:
            BadInput: the file is damaged, or of another release.
        """
        file = root.path / FILE
        if not file.exists():
            return None
        try:
            return cls.model_validate(json.loads(file.read_text()))
        except (ValueError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"{file} cannot be read ({reason}); run `ambient-omni run` again with all of its "
                f"options after removing the file"
            ) from error

    def save(self, root: Root) -> None:
        """Write the request into the root."""
        write_json(root.path / FILE, self.model_dump(mode="json"))

    @property
    def full_recipe(self) -> "Recipe":
        """The recipe as a checked value."""
        from dagster_project.recipe import parse_recipe

        return parse_recipe(self.recipe, "the recipe in request.json")

    @property
    def operations(self) -> OperationsConfig:
        """The recipe's `operations`, without the cost of reading the rest of it."""
        return OperationsConfig.model_validate(self.recipe.get("operations", {}))

    def of_role(self, *roles: Role) -> tuple[str, ...]:
        """Return the names of the batches with one of these roles, in order of arrival.

        Those that are held back are left out.
        """
        return tuple(b.name for b in self.batches if b.role in roles and not self.is_held(b.name))

    def has_rule(self, kind: str) -> bool:
        """Say whether an arm of the recipe has a rule of this kind; cheap."""
        return has_rule(self.recipe, kind)

    def is_held(self, batch: str) -> bool:
        """Say whether a batch is held back from all that follows it."""
        verdict = self.verdicts.get(batch)
        return verdict is not None and verdict.status == "held"

    def require_let_in(self, batch: str) -> None:
        """Check that a batch may be worked on.

        Raises:
            BadInput: it is held back; the message says why.
        """
        if self.is_held(batch):
            raise BadInput(
                f"batch {batch} is held back: it {self.verdicts[batch].why}; let it in with "
                f"`ambient-omni accept {batch} --why ...`"
            )

    def batch(self, name: str) -> BatchRequest:
        """Return one batch.

        Raises:
            BadInput: no batch has that name.
        """
        for batch in self.batches:
            if batch.name == name:
                return batch
        known = ", ".join(b.name for b in self.batches) or "none"
        raise BadInput(
            f"no batch {name!r} was asked for (there are: {known}); add it with `ambient-omni run`"
        )

    def ingest_of(self, batch: str) -> "IngestConfig":
        """Return how a batch is ingested: the recipe's settings and its own.

        Raises:
            BadInput: a setting of its own is unknown or out of range.
        """
        from dagster_project.recipe import parse_ingest

        return parse_ingest(self.recipe.get("ingest", {}) | self.batch(batch).ingest, batch)

    def with_batches(self, new: Iterable[BatchRequest]) -> "Request":
        """Return the request with more batches; one that is already there changes nothing.

        Raises:
            BadInput: a name cannot be used, or is taken by another source or another role.
        """
        from pipelines.ingest.register import check_batch_name

        known = {b.name: b for b in self.batches}
        for batch in new:
            check_batch_name(batch.name)
            old = known.setdefault(batch.name, batch)
            if old != batch:
                raise BadInput(
                    f"batch {batch.name!r} already holds {old.source} as {old.role}; "
                    + (
                        f"give {batch.source} another name with --source-name, or take another "
                        "--root"
                        if batch.role == "pool"
                        else f"a root has one {batch.role}: take another --root for {batch.source}"
                    )
                )
        return self.model_copy(update={"batches": tuple(known.values())})


def has_rule(recipe: Mapping[str, Any], kind: str) -> bool:
    """Say whether an arm of a recipe's plain values has a rule of this kind."""
    return any(rule.get("kind") == kind for rule in recipe.get("arms", {}).values())


def change_request(root: Root, change: Callable[[Request], Request]) -> Request:
    """Change a root's request as one step, whoever else changes it meanwhile.

    Raises:
        BadInput: nothing was asked of the root yet.
    """
    with _waiting_lock(root):
        request = Request.load(root)
        if request is None:
            raise BadInput(
                f"{root.path} was asked for nothing yet; name its sources with "
                f"`ambient-omni run --root {root.path} --source ... --reference ...`"
            )
        changed = change(request)
        if changed != request:
            changed.save(root)
        return changed


def judge(root: Root, batch: str, verdict: Verdict | None) -> Request:
    """Note a verdict on a batch, or forget it. A check never overrules a person.

    Raises:
        BadInput: no batch has that name.
    """

    def change(request: Request) -> Request:
        request.batch(batch)
        old = request.verdicts.get(batch)
        if old is not None and old.by == "person" and (verdict is None or verdict.by == "check"):
            return request
        kept = {name: v for name, v in request.verdicts.items() if name != batch}
        return request.model_copy(
            update={"verdicts": kept if verdict is None else kept | {batch: verdict}}
        )

    return change_request(root, change)


@contextmanager
def _waiting_lock(root: Root) -> Iterator[None]:
    give_up = time.monotonic() + WAIT_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(root.lock(*LOCK))
            except JobAlreadyRunning:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)
                continue
            break
        yield


def batch_name_of(source: str) -> str:
    """Return the name of the batch that a source becomes when the user gives none.

    Letters, digits, '_', '.' and '-' stay; a name that is spoken for gets `pool-` in front.
    """
    stem = Path(source.rstrip("/")).name.split(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:100] or "pool"
    return f"pool-{name}" if name in (REFERENCE, EVALUATION) else name


def absolute_source(source: str) -> str:
    """Return a source that means the same from any working directory.

    Raises:
        BadInput: it is a local path, and nothing is there.
    """
    if "://" in source:
        return source
    path = Path(source).expanduser().absolute()
    if any(sign in path.name for sign in "*?{["):
        return str(path)  # shard patterns are resolved by ingest
    if not path.exists():
        raise BadInput(f"{source} does not exist; name a folder, tar shards or a URL list")
    return str(path)

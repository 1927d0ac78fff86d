"""What a root was asked for: its batches, and the recipe with every value spelt out.

`ambient-omni run` writes it once; the served graph reads it, so that a person who presses
"Materialize" gets exactly what the command did.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import BadInput
from schemas.root import Root, write_json

if TYPE_CHECKING:
    from dagster_project.recipe import Recipe

FILE = "request.json"
REFERENCE, EVALUATION = "reference", "evaluation"
Role = Literal["pool", "reference", "evaluation"]


class BatchRequest(BaseModel):
    """One ingest batch: its name, what it is for, and the folder, shards or list it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role
    source: str


class Request(BaseModel):
    """Everything that a run needs beside the root.

    Attributes:
        batches: in order of arrival; at most one reference and one evaluation batch.
        recipe: the recipe's values; kept as plain values so that reading a request is cheap.
        truth: Parquet file of what was done to the images; only the report reads it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batches: tuple[BatchRequest, ...] = ()
    recipe: dict[str, Any]
    truth: str | None = None

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

    def of_role(self, *roles: Role) -> tuple[str, ...]:
        """Return the names of the batches with one of these roles, in order of arrival."""
        return tuple(b.name for b in self.batches if b.role in roles)

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

    def with_batches(self, new: Iterable[BatchRequest]) -> "Request":
        """Return the request with more batches; one that is already there changes nothing.

        Raises:
            BadInput: a name is taken by another source or another role.
        """
        known = {b.name: b for b in self.batches}
        for batch in new:
            old = known.setdefault(batch.name, batch)
            if old != batch:
                raise BadInput(
                    f"batch {batch.name!r} already holds {old.source} as {old.role}; give "
                    f"{batch.source} another name with --source-name, or take another --root"
                )
        return self.model_copy(update={"batches": tuple(known.values())})


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

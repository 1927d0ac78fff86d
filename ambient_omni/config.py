"""What all settings share: frozen, checked when they are built, read from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import BadInput
from schemas.known import instead_of

Config = TypeVar("Config", bound=BaseModel)

_NO_MAPPING = ("model_type", "model_attributes_type")
_PLAINLY = {
    "missing": "this setting is needed",
    "dict_type": "it must be a mapping, such as {name: value}",
    "mapping_type": "it must be a mapping, such as {name: value}",
    "tuple_type": "it must be a list, such as [a, b]",
    "list_type": "it must be a list, such as [a, b]",
}
"""What pydantic says in Python's words."""

_KEY = "[key]"
"""Pydantic's place of a mapping's key."""


class Frozen(BaseModel):
    """Settings that do not change, refuse names that they do not know, and are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def load_config(path: Path, kind: type[Config], what: str = "config") -> Config:
    """Read a YAML or JSON file into a config.

    Args:
        path: of the file.
        kind: of config.
        what: it is, for messages.

    Raises:
        BadInput: the file is not there, is no mapping, or a setting is unknown or out of range.
    """
    content = read_settings(path, what)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{path}: {explained(error, kind)}") from error


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """Return the settings of a YAML or JSON file.

    Args:
        path: of the file.
        what: it is, for messages: a config, a policy, a recipe.

    Raises:
        BadInput: the file is not there, empty, or no mapping.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"cannot read the {what} {path}: {_one_line(str(error))}") from error
    if content is None:
        raise BadInput(f"the {what} {path} is empty; it must be a mapping of settings to values")
    if not isinstance(content, dict):
        raise BadInput(
            f"the {what} {path} must be a mapping of settings to values, not a "
            f"{type(content).__name__}"
        )
    return content


def explained(error: ValidationError, expected: Any) -> str:
    """Return in one line which setting is wrong, why, and what there is instead.

    Args:
        error: of pydantic.
        expected: the model that was validated, or a union of models.
    """
    # What is unknown is often what is missing, misspelt: it tells more.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place: list[str] = []
    models = models_of(expected)
    *path, last = first["loc"] or ("",)
    for part in path:
        models = _inside(models, part, place)
    if first["type"] == "extra_forbidden":
        place.append(str(last))
        said = _unknown(str(last), models)
    else:
        models = _inside(models, last, place) if first["loc"] else models
        said = _said(first, models)
    where = f"{'.'.join(place)}: " if place else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}{said}{more}"


def resolved(config: BaseModel) -> str:
    """Return a config with all its defaults as indented JSON."""
    return json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a value of a type can be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


def _inside(
    models: list[type[BaseModel]], part: int | str, place: list[str]
) -> list[type[BaseModel]]:
    """Return the models one step further in, and add the step to the place as a person wrote it."""
    owners = [model for model in models if part in model.model_fields]
    if owners:
        place.append(str(part))
        return [m for owner in owners for m in models_of(owner.model_fields[str(part)].annotation)]
    tagged = [model for model in models if part in tags_of(model)]
    if tagged:
        return tagged
    if part != _KEY:
        place.append(str(part))
    return models


def tags_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values of a model's `kind`, where it has one."""
    kind = model.model_fields.get("kind")
    literal = kind is not None and get_origin(kind.annotation) is Literal
    return get_args(kind.annotation) if kind is not None and literal else ()


def _said(error: Mapping[str, Any], models: Iterable[type[BaseModel]]) -> str:
    if error["type"] == "union_tag_not_found":
        return f"a kind is needed; there are {_listed(t for m in models for t in tags_of(m))}"
    if error["type"] == "union_tag_invalid":
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        known = [name.strip("'") for name in tags.split(", ")]
        return f"there is no kind {tag!r}{instead_of(tag, known)}"
    if error["type"] in _NO_MAPPING:
        tags = _listed(tag for model in models for tag in tags_of(model))
        return "it must be a mapping of settings to values" + (
            f", such as {{kind: ...}} with one of {tags}" if tags else ""
        )
    if error["type"] in _PLAINLY:
        return _PLAINLY[error["type"]]
    if error["type"] == "string_type" and error["loc"][-1] == _KEY:
        return "names are text: put it in quotes"
    return _one_line(error["msg"]).removeprefix("Value error, ")


def _unknown(name: str, models: Iterable[type[BaseModel]]) -> str:
    known = [field for model in models for field in model.model_fields]
    return f"there is no such setting{instead_of(name, known)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""What all settings share: frozen, checked when they are built, read from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import BadInput

Config = TypeVar("Config", bound=BaseModel)


class Frozen(BaseModel):
    """Settings that do not change, refuse names that they do not know, and are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read a YAML or JSON file into a config.

    Raises:
        BadInput: the file is not there, is no mapping, or a setting is unknown or out of range.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"cannot read the config {path}: {_one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise BadInput(f"the config {path} must be a mapping of settings to values")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadInput(f"{path}: {where}: {_said(first)}{more}") from error


def resolved(config: BaseModel) -> str:
    """Return a config with all its defaults as indented JSON."""
    return json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)


def _said(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    return _one_line(error["msg"]).removeprefix("Value error, ")


def _one_line(text: str) -> str:
    return " ".join(text.split())

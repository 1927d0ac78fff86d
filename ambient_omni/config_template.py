"""A config file to start from: every setting with its default and what it means."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from ambient_omni.config import models_of, tags_of

_INDENT = "  "
_NEEDED = "NEEDED"


def template(kind: type[BaseModel]) -> str:
    """Return YAML with every setting of a config; those without a default come first.

    What stands there is what holds without the line.
    """
    told = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    fields = kind.model_fields
    first = sorted(fields, key=lambda name: not fields[name].is_required())
    head = (
        f"# {told}",
        f"# {_NEEDED} has no default. Delete every other line that you do not change: it says what",
        "# holds without it.",
    )
    return "\n".join([*head, *_lines(kind, first, None, "")]) + "\n"


class PrintConfig(argparse.Action):
    """Print the template of a command's config and leave, as --help does.

    `const` names the model, "module:Class", which is imported only then.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print, and leave with 0."""
        module, name = str(self.const).split(":")
        sys.stdout.write(template(getattr(importlib.import_module(module), name)))
        parser.exit()


def add_print_config(parser: argparse.ArgumentParser, model: str) -> None:
    """Give a command the option."""
    parser.add_argument(
        "--print-config", action=PrintConfig, nargs=0, const=model,
        help="print a config with all settings, defaults and meanings, and leave",
    )  # fmt: skip


def _lines(
    kind: type[BaseModel], names: Sequence[str], values: BaseModel | None, indent: str
) -> Iterator[str]:
    for name in names:
        field = kind.model_fields[name]
        if field.exclude:
            continue
        value = _default(field) if values is None else getattr(values, name)
        comment = _comment(field)
        if isinstance(value, BaseModel) and type(value).model_fields:
            yield f"{indent}{name}:{comment}"
            inner = type(value)
            yield from _lines(inner, list(inner.model_fields), value, indent + _INDENT)
        elif value is PydanticUndefined:
            yield f"{indent}{name}: {_NEEDED}{comment}"
        else:
            yield f"{indent}{name}: {_flow(value)}{comment}"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _flow(value: Any) -> str:
    plain = to_jsonable_python(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(field: FieldInfo) -> str:
    kinds = dict.fromkeys(tag for m in models_of(field.annotation) for tag in tags_of(m))
    said = [field.description.rstrip(".")] if field.description else []
    if len(kinds) > 1:
        said.append(f"kinds: {', '.join(kinds)}")
    return f"  # {' '.join('; '.join(said).split())}" if said else ""

"""Progress with rate and time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar, cast

from tqdm import tqdm

Item = TypeVar("Item")

_LINE_SECONDS = 5.0
_BAR = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
_LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class _Lines:
    """A stream for tqdm that turns its redrawn bar into lines, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and line != self._last:
            self._stream.write(line + "\n")
            self._last = line

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


def progress(
    items: Iterable[Item] | None = None,
    *,
    label: str,
    unit: str = "it",
    total: int | None = None,
    initial: int = 0,
    show: bool = True,
    stream: TextIO | None = None,
) -> tqdm[Item]:
    """Return a tqdm over `items`, or a counter to `update(n)` when only `total` is given.

    Args:
        items: what to walk through; its length is the total if none is given.
        label: what is being done, in front of the numbers.
        unit: what is counted.
        total: how many there will be.
        initial: how many were done before, for work that resumes.
        show: False on ranks other than the first, and in tests.
        stream: where to write; standard error by default.
    """
    out = stream or sys.stderr
    common: dict[str, Any] = {
        "iterable": items,
        "total": total,
        "initial": initial,
        "desc": label,
        "unit": f" {unit}",
        "disable": not show,
    }
    known_total = total is not None or hasattr(items, "__len__")
    if out.isatty():
        return tqdm(
            **common, file=out, dynamic_ncols=True, bar_format=_BAR if known_total else None
        )
    # Work that ends within two seconds says nothing in a log.
    return tqdm(
        **common,
        file=cast(TextIO, _Lines(out)),
        mininterval=_LINE_SECONDS,
        maxinterval=_LINE_SECONDS,
        delay=2.0,
        ascii=True,
        bar_format=_LINE if known_total else None,
    )

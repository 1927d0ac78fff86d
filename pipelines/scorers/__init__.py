"""Packs of scorers; one wide table each."""

from pipelines.scorers.base import Pack
from pipelines.scorers.classical import CLASSICAL

PACKS: dict[str, Pack] = {CLASSICAL.name: CLASSICAL}

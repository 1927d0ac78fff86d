"""Packs of scorers; one wide table each."""

from pipelines.scorers.base import Pack
from pipelines.scorers.classical import CLASSICAL
from pipelines.scorers.natural_statistics import NATURAL_STATISTICS
from pipelines.scorers.safety import SAFETY

PACKS: dict[str, Pack] = {pack.name: pack for pack in (CLASSICAL, NATURAL_STATISTICS, SAFETY)}

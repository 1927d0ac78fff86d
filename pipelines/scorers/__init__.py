"""Packs of scorers; one wide table each."""

from pipelines.scorers.base import Pack
from pipelines.scorers.classical import CLASSICAL
from pipelines.scorers.natural_statistics import NATURAL_STATISTICS

PACKS: dict[str, Pack] = {
    pack.name: pack
    for pack in (
        CLASSICAL,
        NATURAL_STATISTICS,
    )
}

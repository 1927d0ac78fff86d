"""Packs of scorers; one wide table each."""

from pipelines.scorers.base import Pack
from pipelines.scorers.classical import CLASSICAL
from pipelines.scorers.clip import clip_pack
from pipelines.scorers.clip_network import ClipConfig
from pipelines.scorers.natural_statistics import NATURAL_STATISTICS
from pipelines.scorers.safety import SAFETY

# The last one under its default settings; `ScoreConfig.pack_of` gives it under others.
PACKS: dict[str, Pack] = {
    pack.name: pack for pack in (CLASSICAL, NATURAL_STATISTICS, SAFETY, clip_pack(ClipConfig()))
}

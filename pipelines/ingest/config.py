"""What a user can set about ingest."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ambient_omni.images import ImageLimits
from schemas.ids import canonical_hash

# Part of every signature: raise it when the same source would give other rows.
INGEST_VERSION = 2


class DownloadConfig(BaseModel):
    """How a URL list is read and fetched by img2dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Column names are matched without regard to case: LAION lists say URL and TEXT.
    url_column: str = "url"
    # Of a request as a whole, redirects and body included.
    timeout_sec: int = Field(default=10, ge=1)
    # What fails for a reason that may pass is asked again, after a wait that doubles each time.
    num_rounds: int = Field(default=3, ge=1)
    first_wait_sec: float = Field(default=2.0, ge=0)
    # A list that strangers wrote must not reach into this machine; tests serve from it.
    allow_loopback: bool = False
    num_processes: int = Field(default=2, ge=1)
    num_threads: int = Field(default=32, ge=1)
    # A killed download repeats at most the shards that were under way.
    urls_per_shard: int = Field(default=1000, ge=1)


class IngestConfig(BaseModel):
    """How a source becomes a batch.

    Attributes:
        limits: which images are taken.
        max_image_bytes: larger items are refused without being read.
        labels_from_folders: take an image's parent folder as its label, as ImageFolder does.
        source_name: one name for all items; by default the first folder level tells the source.
        caption_keys: names of a caption in JSON sidecars, metadata files and URL lists, first
            found wins; without regard to case.
        label_keys: names of a class label, likewise.
        images_per_shard: a shard is closed at this many images; a shard is a Spark task's work.
        max_shard_bytes: or before it grows beyond this.
        in_place: of tar shards: verify them and register where the bytes lie, on this machine or
            in an object store, without keeping a copy. They must then stay as they are, and a purge
            does not blank them. Anything else is refused, so set it for a batch, not for all.
        num_workers: processes that verify images; None for one per core.
        download: only for URL lists.
        show_progress: say rate and time left on standard error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: ImageLimits = ImageLimits()
    max_image_bytes: int = Field(default=256 * 2**20, ge=1)
    labels_from_folders: bool = False
    source_name: str | None = Field(default=None, min_length=1)
    caption_keys: tuple[str, ...] = ("caption", "text")
    label_keys: tuple[str, ...] = ("label", "cls")
    images_per_shard: int = Field(default=512, ge=1)
    max_shard_bytes: int = Field(default=256 * 2**20, ge=1)
    in_place: bool = False
    num_workers: int | None = Field(default=None, ge=1)
    download: DownloadConfig = DownloadConfig()
    show_progress: bool = True

    def content_hash(self) -> str:
        """Hash of everything that can change a row; how fast rows are made is left out."""
        settings: dict[str, Any] = self.model_dump(mode="json")
        for speed in ("num_workers", "show_progress", "download"):
            settings.pop(speed)
        if not self.in_place:
            settings.pop("in_place")
        settings["url_column"] = self.download.url_column
        return canonical_hash([INGEST_VERSION, settings])

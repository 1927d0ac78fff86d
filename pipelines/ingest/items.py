"""What a source lists: items whose bytes lie somewhere, or that are refused at once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

# Reason codes of ingest, beside those of ambient_omni.images.
MISSING_FILE = "missing_file"  # listed by metadata or a link, not there
MISSING_IMAGE = "missing_image"  # a shard has the caption of an image that it does not have
UNREADABLE = "unreadable"  # the file system refused
NOT_A_FILE = "not_a_file"  # a pipe, socket or device
SYMLINK = "symlink"  # a link to a folder, or out of the source
UNSUPPORTED_MEMBER = "unsupported_member"  # a link, device or sparse file in a tar
TRUNCATED_MEMBER = "truncated_member"  # the shard ends inside it
TRUNCATED_SHARD = "truncated_shard"  # the shard ends inside a tar header
CORRUPT_SHARD = "corrupt_shard"  # no tar header where one must be
TOO_MANY_BYTES = "too_many_bytes"  # above max_image_bytes
DECODER_DIED = "decoder_died"  # decoding it ended the process
BAD_ROW = "bad_row"  # a line of a URL list that cannot be read
NO_URL = "no_url"
UNSUPPORTED_SCHEME = "unsupported_scheme"  # neither http nor https
FORBIDDEN_ADDRESS = "forbidden_address"  # it leads into a private network or to this machine
TAKEN_DOWN = "taken_down"  # these bytes were excluded; see pipelines.takedown
DISALLOWED = "disallowed"  # the server asks not to be used (X-Robots-Tag)
TIMEOUT = "timeout"
CONNECTION_FAILED = "connection_failed"
DOWNLOAD_FAILED = "download_failed"
NO_STATUS = "no_status"  # the downloader finished its shard and never spoke of this row

# What may end otherwise another day. A server's "not found" or "not for you" is an answer.
TRANSIENT_REASONS = frozenset(
    {
        TIMEOUT,
        CONNECTION_FAILED,
        DOWNLOAD_FAILED,
        NO_STATUS,
        *(f"http_{code}" for code in (408, 425, 429, 500, 502, 503, 504)),
    }
)

# What a server, or our own guard, said for good: asking again would be rude, and in vain.
ANSWERS = frozenset({DISALLOWED, FORBIDDEN_ADDRESS, TAKEN_DOWN})

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})


@dataclass(frozen=True, slots=True)
class Verified:
    """What decoding found out about bytes: the same for the same bytes, so it is found out once.

    `width` and `height` are in pixels after EXIF orientation; `phash` is a signed 64-bit integer.
    """

    sample_id: str
    width: int
    height: int
    format: str
    phash: int


@dataclass(frozen=True, slots=True)
class ListedItem:
    """One listed item.

    Attributes:
        key: its place in the listing, unique in the batch.
        uri: where the bytes came from.
        source: name of the source.
        path: file that holds the bytes; empty if there are none.
        stays_at: address of that file where it is only the fetched copy of one in an object store.
        offset: where they begin in that file, None if they are the whole file.
        num_bytes: how many there are (for a whole file: were, when it was listed).
        caption: as found.
        label: as found.
        reason: why the item is refused at once, else None.
        detail: more about that.
        sample_id: of bytes that were had and refused by an earlier run, which did not keep them.
        verified: what an earlier run under the same settings found the bytes to be.
    """

    key: str
    uri: str
    source: str
    path: str = ""
    stays_at: str = ""
    offset: int | None = None
    num_bytes: int = 0
    caption: str | None = None
    label: str | None = None
    reason: str | None = None
    detail: str | None = None
    sample_id: str | None = None
    verified: Verified | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of one URL: where its bytes lie, or why there are none."""

    path: str = ""
    offset: int = 0
    num_bytes: int = 0
    reason: str | None = None
    detail: str | None = None
    sample_id: str | None = None  # of bytes that were had, refused, and not kept
    verified: Verified | None = None  # of bytes that an earlier run stored

    @property
    def is_worth_another_try(self) -> bool:
        """Whether it failed for a reason that may be gone another day."""
        return self.reason in TRANSIENT_REASONS


def is_answer(reason: str) -> bool:
    """Say whether a reason is a server's or the guard's last word on a URL."""
    return reason in ANSWERS or (reason.startswith("http_") and reason not in TRANSIENT_REASONS)


class Source(Protocol):
    """A folder, tar shards or a URL list."""

    @property
    def kind(self) -> str:
        """Return "folder", "tar" or "url_list"."""

    @property
    def uri(self) -> str:
        """Where it is, for the register."""

    @property
    def signature(self) -> str:
        """Changes when the source does; made without reading an image."""

    def items(self, work: Path, earlier: Mapping[str, Fetched]) -> list[ListedItem]:
        """List everything, in an order that depends on the source's content alone.

        Args:
            work: folder for files that must outlive a killed process, such as downloads.
            earlier: by URL, what an earlier run of the batch found out for good.
        """


def text_of(name: str) -> str:
    """Return a file name as valid text: bytes that are not UTF-8 are written as backslash codes."""
    if name.isascii():
        return name  # the same object: a million items name their path and uri once
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def with_distinct_keys(items: Iterable[ListedItem]) -> list[ListedItem]:
    """Number the keys that stand more than once; a tar may hold one name many times."""
    seen: Counter[str] = Counter()
    taken: set[str] = set()
    out = []
    for item in items:
        key = item.key
        while key in taken:
            seen[item.key] += 1
            key = f"{item.key}~{seen[item.key] + 1}"
        taken.add(key)
        out.append(item if key == item.key else replace(item, key=key))
    return out

"""The files that hold samples' bytes: a root's own shards, and those that stay elsewhere."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Self, cast

from schemas.addresses import is_address, open_store, told_in_a_line

# Of an object store: a request costs tens of milliseconds, whatever it asks for.
READ_AHEAD_BYTES = 4 * 2**20


def place_of(folder: Path, shard: str) -> Path | str:
    """Return the path of a shard of this machine, or the address of one in an object store.

    Args:
        folder: `Root.shards`.
        shard: as `samples.shard` says it: relative to that folder, an absolute path, an address.
    """
    return shard if is_address(shard) else folder / shard


def is_foreign(shard: str) -> bool:
    """Say whether a shard was registered where it lies: it is read and never changed."""
    return is_address(shard) or Path(shard).is_absolute()


def read_range(place: Path | str, byte_offset: int, num_bytes: int) -> bytes:
    """Return some bytes of a shard, fewer where it ends: one request, safe in threads and forks.

    Raises:
        BadInput: the file system or the store refuses.
    """
    with _told(place):
        if isinstance(place, Path):
            with place.open("rb") as file:
                file.seek(byte_offset)
                return file.read(num_bytes)
        store, path = open_store(place)
        return cast(bytes, store.cat_file(path, start=byte_offset, end=byte_offset + num_bytes))


class ShardReader:
    """One open shard, for one thread that reads in the order of the offsets.

    Args:
        place: path or address, see `place_of`.
        read_ahead_bytes: what is read of an object beyond what was asked for.

    Raises:
        BadInput: it cannot be opened.
    """

    def __init__(self, place: Path | str, *, read_ahead_bytes: int = READ_AHEAD_BYTES) -> None:
        self._place = place
        with _told(place):
            self._file = _open(place, read_ahead_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, byte_offset: int, num_bytes: int) -> bytes:
        """Return the bytes there, fewer where the shard ends.

        Raises:
            BadInput: the file system or the store refuses.
        """
        with _told(self._place):
            self._file.seek(byte_offset)
            return self._file.read(num_bytes)


def _told(place: Path | str) -> AbstractContextManager[None]:
    return told_in_a_line(
        f"shard {place} cannot be read",
        "see that it is there and can be reached; if it changed, ingest its batch again",
    )


def _open(place: Path | str, read_ahead_bytes: int) -> BinaryIO:
    if isinstance(place, Path):
        return place.open("rb")
    store, path = open_store(place)
    # What a listing of this process said of the object, hours ago perhaps.
    store.invalidate_cache(path)
    opened = store.open(path, "rb", cache_type="readahead", block_size=read_ahead_bytes)
    return cast(BinaryIO, opened)

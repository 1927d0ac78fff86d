"""Where the members of a tar lie. Nothing is ever extracted: names are data, links are refused."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipelines.ingest.items import (
    CORRUPT_SHARD,
    TRUNCATED_MEMBER,
    TRUNCATED_SHARD,
    UNSUPPORTED_MEMBER,
    text_of,
)

# A name or a set of attributes that is longer is an attack on memory, not a name.
MAX_HEADER_BYTES = 2**20
_MEMBER_KINDS = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "pipe",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar, or the place where the tar is broken.

    Attributes:
        name: as the tar says it; never used as a path.
        offset: where its bytes begin in the tar.
        num_bytes: how many.
        reason: why it cannot be used, else None.
        detail: more about that.
    """

    name: str
    offset: int
    num_bytes: int
    reason: str | None = None
    detail: str | None = None


class _OversizedHeader(tarfile.TarError):
    pass


# What tarfile raises on hostile headers.
_CUT = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, RecursionError)


class _GuardedInfo(tarfile.TarInfo):
    """Reads long names and attributes only up to a bound, and never a sparse map."""

    def _guard(self) -> None:
        if not 0 <= self.size <= MAX_HEADER_BYTES:
            raise _OversizedHeader(f"a header of {self.size} bytes")

    def _proc_gnulong(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        self._guard()
        return super()._proc_gnulong(tar)  # type: ignore[misc,no-any-return]

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        self._guard()
        return super()._proc_pax(tar)  # type: ignore[misc,no-any-return]

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, *_: object) -> None:
        # tarfile's own reads the map until it ends, which in a crafted file is never.
        following.sparse = []  # type: ignore[assignment]


def read_index(path: Path) -> Iterator[Member]:
    """Yield the members of a tar in their order, with the places where it is broken.

    Concatenated tars are read through; after a broken header the next whole one is looked for.
    Folders inside the tar are skipped: they hold no bytes.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        end = 0
        for info in _headers(file, size):
            if isinstance(info, Member):
                yield Member("", end, size - end, info.reason, info.detail)
                return
            yield from _gap(path, end, info.offset)
            end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if not info.isdir():
                yield _member(info, size)
        yield from _gap(path, end, size)


def _headers(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | Member]:
    """Yield headers, then at most one Member that says why there are no more."""
    last = -1
    try:
        # Zero blocks and blocks that are no header are skipped, up to the next whole header.
        tar = tarfile.TarFile(
            fileobj=file,
            tarinfo=_GuardedInfo,
            ignore_zeros=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (info := tar.next()) is not None:
            if info.size < 0 or info.offset <= last:
                yield Member("", 0, 0, CORRUPT_SHARD, f"{info.name[:100]!r} points backwards")
                return
            last = info.offset
            # tarfile keeps every member it saw; a large shard has many.
            tar.members.clear()  # type: ignore[attr-defined]
            yield info
            if info.offset_data + info.size > size:
                return  # nothing can follow, and a seek that far may fail
    except _CUT as error:
        # A cut inside a member was told with the member itself.
        if not _beyond_end(error):
            yield Member("", 0, 0, CORRUPT_SHARD, f"{type(error).__name__}: {error}"[:200])


def _beyond_end(error: Exception) -> bool:
    return isinstance(error, tarfile.ReadError) and str(error) == "unexpected end of data"


def _gap(path: Path, begin: int, end: int) -> Iterator[Member]:
    """Yield one broken place if anything but zeros stands where no member is."""
    if begin >= end:
        return
    with path.open("rb") as file:
        file.seek(begin)
        left = end - begin
        while left > 0:
            block = file.read(min(left, 2**20))
            if not block:
                return
            if block.count(0) != len(block):
                break
            left -= len(block)
        else:
            return
    lost = end - begin
    if lost < tarfile.BLOCKSIZE:
        yield Member("", begin, lost, TRUNCATED_SHARD, f"{lost} bytes of a tar header")
    else:
        yield Member("", begin, lost, CORRUPT_SHARD, f"{lost} bytes that are no tar member")


def _member(info: tarfile.TarInfo, size: int) -> Member:
    name, offset = text_of(info.name), info.offset_data
    if not info.isreg() or info.issparse():
        kind = _MEMBER_KINDS.get(info.type, "sparse or special file")
        return Member(name, offset, 0, UNSUPPORTED_MEMBER, kind)
    if offset + info.size > size:
        had = max(0, size - offset)
        return Member(name, offset, had, TRUNCATED_MEMBER, f"{had} of {info.size} bytes")
    return Member(name, offset, info.size)

"""Tar shards of a batch: WebDataset layout, source bytes as they came.

A shard's name carries a hash of what is in it. A shard is therefore never changed once it has
its name: a killed ingest leaves only whole shards, a grown source re-uses those it had, and the
offsets in an older version of `samples` stay true.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import BadInput
from schemas.ids import sample_id_of

EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Stored:
    """One image to be stored: what stands in the shard beside its bytes."""

    position: int
    sample_id: str
    num_bytes: int
    format: str
    metadata_bytes: bytes  # JSON, keys sorted

    @property
    def image_name(self) -> str:
        """Name of the member that holds the bytes."""
        return f"{self.position:09d}.{EXTENSIONS[self.format]}"

    @property
    def metadata_name(self) -> str:
        """Name of the member that holds the metadata."""
        return f"{self.position:09d}.json"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard before it is written: its name under <root>/shards, members, offsets, length."""

    name: str
    members: tuple[Stored, ...]
    offsets: tuple[int, ...]
    num_bytes: int


def plan_shards(
    batch: str, images: Sequence[Stored], images_per_shard: int, max_bytes: int
) -> list[ShardPlan]:
    """Divide images, in their order, into shards."""
    groups = _groups(images, images_per_shard, max_bytes)
    return [_plan(batch, number, group) for number, group in enumerate(groups)]


def write_shard(
    folder: Path, plan: ShardPlan, read: Callable[[Stored], bytes], uri: Callable[[Stored], str]
) -> bool:
    """Write one shard under `folder`; return False if it stood there already.

    Raises:
        BadInput: an image's bytes are not those that were verified.
    """
    path = folder / plan.name
    if path.exists() and path.stat().st_size == plan.num_bytes:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for member, offset in zip(plan.members, plan.offsets, strict=True):
                data = read(member)
                if sample_id_of(data) != member.sample_id:
                    raise BadInput(f"{uri(member)} changed while it was ingested; run again")
                assert tar.offset + _BLOCK == offset
                _add(tar, member.image_name, data)
                _add(tar, member.metadata_name, member.metadata_bytes)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return True


def _groups(images: Sequence[Stored], count: int, max_bytes: int) -> Iterator[list[Stored]]:
    group: list[Stored] = []
    size = 0
    for image in images:
        if group and (len(group) >= count or size + image.num_bytes > max_bytes):
            yield group
            group, size = [], 0
        group.append(image)
        size += image.num_bytes
    if group:
        yield group


def _plan(batch: str, number: int, members: Sequence[Stored]) -> ShardPlan:
    offsets, at, digest = [], 0, hashlib.sha256()
    for member in members:
        beside = member.metadata_bytes
        offsets.append(at + _BLOCK)
        at += _padded(member.num_bytes) + _padded(len(beside))
        digest.update(f"{member.image_name} {member.sample_id}\n".encode() + beside)
    # A tar ends with two zero blocks and is filled up to a record.
    total = -(-(at + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    name = f"{batch}/{number:06d}-{digest.hexdigest()[:8]}.tar"
    return ShardPlan(name, tuple(members), tuple(offsets), total)


def _padded(num_bytes: int) -> int:
    return _BLOCK + -(-num_bytes // _BLOCK) * _BLOCK


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # The defaults of TarInfo are constants (time 0, no owner), so equal content is equal bytes.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))

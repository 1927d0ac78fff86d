"""Where tables lie: a folder, or a prefix of an object store. One way to the files of both.

Credentials and the endpoint of a store come from the environment (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, and `AWS_ALLOW_HTTP=true` for an
endpoint without TLS) or from the machine's role, in each process anew: they are no part of a
location, of what travels to executors, or of anything that is written.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake import DeltaTable

from schemas.errors import BadInput

_MAX_MESSAGE = 300
_LOCATION = re.compile(r"s3://[a-z0-9][a-z0-9.\-]{1,62}(/[A-Za-z0-9_.=\-]+)*")


@dataclass(frozen=True)
class Store:
    """A place that holds files under relative names. Picklable.

    `location` is an absolute path or `s3://bucket/prefix`.
    """

    location: str

    @classmethod
    def of(cls, location: str | Path) -> "Store":
        """Return the store at a path or address.

        Raises:
            BadInput: an address of another kind, or one with credentials in it.
        """
        text = str(location)
        if "://" not in text:
            return cls(str(Path(text).expanduser().absolute()))
        text = text.rstrip("/")
        if not _LOCATION.fullmatch(text):
            shown = text.partition("://")[0]  # the rest may hold a secret
            raise BadInput(
                f"{shown}://...: tables lie in a folder or under s3://bucket/prefix (letters, "
                "digits and -_.=/ alone); credentials come from AWS_* environment variables"
            )
        return cls(text)

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder of this machine."""
        return "://" not in self.location

    def child(self, name: str) -> "Store":
        """Return the store of the files under `name`."""
        return Store(f"{self.location}/{name}")

    @property
    def filesystem(self) -> pa_fs.FileSystem:
        """Arrow's way to the files; made in each process from its own environment."""
        return pa_fs.LocalFileSystem() if self.is_local else _remote(self.location.split("/")[2])

    def full(self, name: str = "") -> str:
        """Return the name that `filesystem` knows a file by."""
        base = self.location.removeprefix("s3://")
        return f"{base}/{name}" if name else base

    def delta(self, version: int | None = None) -> DeltaTable | None:
        """Open the Delta table that lies here, None if there is none."""
        if not DeltaTable.is_deltatable(self.location):
            return None
        return DeltaTable(self.location, version=version)

    def names(self, under: str = "") -> Iterator[str]:
        """Yield the relative names of all files, in any order; none where nothing lies."""
        selector = pa_fs.FileSelector(self.full(under), recursive=True, allow_not_found=True)
        base = self.full() + "/"
        for info in self.filesystem.get_file_info(selector):
            if info.type == pa_fs.FileType.File:
                yield info.path.removeprefix(base)

    def has(self, name: str) -> bool:
        """Say whether there is such a file.

        Raises:
            BadInput: the object store cannot be asked.
        """
        try:
            found = self.filesystem.get_file_info(self.full(name))
        except OSError as error:
            raise self._unreachable(error) from error
        return bool(found.type == pa_fs.FileType.File)

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Return what tells a file from another of its name: bytes, and ns of its writing."""
        info = self.filesystem.get_file_info(self.full(name))
        return (info.size, info.mtime_ns) if info.type == pa_fs.FileType.File else None

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return int(self.filesystem.get_file_info(self.full(name)).size)

    def size_or_none(self, name: str) -> int | None:
        """Return the bytes of a file, None if there is no such file."""
        info = self.filesystem.get_file_info(self.full(name))
        return int(info.size) if info.type == pa_fs.FileType.File else None

    def read_text(self, name: str) -> str:
        """Return the content of a file of UTF-8."""
        with self.filesystem.open_input_stream(self.full(name)) as file:
            return bytes(file.read()).decode()

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of an object store; a reader sees the old or the new one.

        Raises:
            BadInput: the object store does not take it.
        """
        try:
            with self.filesystem.open_output_stream(self.full(name)) as file:
                file.write(text.encode())
        except OSError as error:
            raise self._unreachable(error) from error

    def parquet(self, name: str) -> pq.ParquetFile:
        """Open a Parquet file for reading; close it, or use it in a `with`."""
        return pq.ParquetFile(self.full(name), filesystem=self.filesystem)

    def columns(self, name: str, columns: list[str]) -> pa.Table:
        """Read columns of a Parquet file; none that stand in its path alone."""
        with self.parquet(name) as parquet:
            return parquet.read(columns)

    def remove(self, name: str) -> None:
        """Remove a file; none there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.full(name))

    def move(self, old: str, new: str) -> None:
        """Give a file another name; on an object store it is copied and removed."""
        self.filesystem.move(self.full(old), self.full(new))

    def _unreachable(self, error: OSError) -> BadInput:
        why = one_line(error)
        return BadInput(
            f"{self.location} cannot be used ({why}); check AWS_* variables and the bucket"
        )


def parquet_of(uri: str) -> pq.ParquetFile:
    """Open a data file by what `Snapshot.file_uris` said of it, in a folder or on a store."""
    folder, _, name = uri.rpartition("/")
    return Store(folder).parquet(name)


def one_line(error: Exception) -> str:
    """Return what an error says, without colours, line ends and the stack below it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    said = plain.partition("\n   0: ")[0]
    return " ".join(said.split())[:_MAX_MESSAGE]


@lru_cache(maxsize=8)
def _remote(bucket: str) -> pa_fs.FileSystem:
    filesystem, _ = pa_fs.FileSystem.from_uri(f"s3://{bucket}")
    return filesystem

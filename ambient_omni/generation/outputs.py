"""Where generated images go: a folder of PNGs or WebDataset shards. Both go on where they stopped.

Image i is a function of the settings and of i. So a file that is there is kept, and settings other
than those that made it are refused: the folder says what it was made with.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import BadInput
from schemas.root import write_json

SETTINGS_FILE = "generate.json"
_METADATA_FILE = "metadata.jsonl"

# The last chunk of a PNG: its length, its name, its checksum.
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

Pixels = NDArray[np.uint8]
Facts = Mapping[str, Any]


class Output(Protocol):
    """A place for images that are numbered from 0."""

    def missing(self, count: int) -> list[range]:
        """Return the runs of numbers below `count` to be made; each is handed to `write` whole."""
        ...

    def write(self, numbers: range, images: Iterator[Pixels], facts: Sequence[Facts]) -> None:
        """Store one run of images, uint8 (H, W, 3) each, with what is known of them."""
        ...

    def read(self, number: int) -> Pixels:
        """Return one image, uint8 (H, W, 3)."""
        ...


class Folder:
    """``000000.png``..., and ``metadata.jsonl`` as image folders of `datasets` have it.

    Args:
        path: where to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def missing(self, count: int) -> list[range]:
        """Return the runs of numbers without a whole file."""
        runs: list[range] = []
        for number in range(count):
            if _is_whole(self._file(number)):
                continue
            if runs and runs[-1].stop == number:
                runs[-1] = range(runs[-1].start, number + 1)
            else:
                runs.append(range(number, number + 1))
        return runs

    def write(self, numbers: range, images: Iterator[Pixels], facts: Sequence[Facts]) -> None:
        """Write each image as it comes."""
        for number, image in zip(numbers, images, strict=True):
            aside = self.path / f".{number:06d}.{os.getpid()}.png"
            Image.fromarray(image).save(aside)
            aside.replace(self._file(number))

    def read(self, number: int) -> Pixels:
        """Return one image."""
        with Image.open(self._file(number)) as image:
            return np.asarray(image.convert("RGB"))

    def count(self) -> int:
        """Return how many images there are from number 0 on without a gap."""
        return next(number for number in itertools.count() if not self._file(number).exists())

    def describe(self, facts: Sequence[Facts]) -> None:
        """Write what is known of each image, by its file name."""
        lines = [
            json.dumps({"file_name": self._file(number).name, **fact}, ensure_ascii=False)
            for number, fact in enumerate(facts)
        ]
        aside = self.path / f".{_METADATA_FILE}.{os.getpid()}"
        aside.write_text("\n".join(lines) + "\n")
        aside.replace(self.path / _METADATA_FILE)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.png"


class Tar:
    """WebDataset shards ``000000.tar``...: ``KEY.png``, ``KEY.json``, and ``KEY.txt`` with prompts.

    A shard is written aside and renamed when it is whole; a shorter one is made again.

    Args:
        path: folder of the shards.
        images_per_shard: how many images a shard holds; the last one may hold fewer.
    """

    def __init__(self, path: Path, images_per_shard: int) -> None:
        self.path = path
        self._per_shard = images_per_shard

    def missing(self, count: int) -> list[range]:
        """Return the shards without a whole file."""
        runs = []
        for start in range(0, count, self._per_shard):
            run = range(start, min(start + self._per_shard, count))
            if self._count(self._file(start)) < len(run):
                runs.append(run)
        return runs

    def write(self, numbers: range, images: Iterator[Pixels], facts: Sequence[Facts]) -> None:
        """Write one shard."""
        final = self._file(numbers.start)
        aside = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            with tarfile.open(aside, "w") as tar:
                for number, image, fact in zip(numbers, images, facts, strict=True):
                    for suffix, content in _members(image, fact):
                        _add(tar, f"{number:08d}.{suffix}", content)
            aside.replace(final)
        finally:
            aside.unlink(missing_ok=True)

    def read(self, number: int) -> Pixels:
        """Return one image."""
        with tarfile.open(self._file(number)) as tar:
            member = tar.extractfile(f"{number:08d}.png")
            assert member is not None
            return np.asarray(Image.open(io.BytesIO(member.read())).convert("RGB"))

    def _file(self, number: int) -> Path:
        return self.path / f"{number // self._per_shard:06d}.tar"

    @staticmethod
    def _count(path: Path) -> int:
        with contextlib.suppress(FileNotFoundError, tarfile.TarError), tarfile.open(path) as tar:
            return sum(name.endswith(".png") for name in tar.getnames())
        return 0


def _is_whole(path: Path) -> bool:
    """Say whether a PNG is there to its end: a machine that fell may leave a name without bytes."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # none there, or shorter than an end
        return False


def _members(image: Pixels, fact: Facts) -> Iterator[tuple[str, bytes]]:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    yield "png", png.getvalue()
    yield "json", json.dumps(fact, ensure_ascii=False).encode()
    if "text" in fact:
        yield "txt", fact["text"].encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # No owner and no time: the same images make the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def claim(path: Path, settings: Mapping[str, Any]) -> None:
    """Say in the folder what its images are made with.

    Args:
        path: the folder; made if it is not there.
        settings: JSON values; other ones make other images.

    Raises:
        BadInput: the folder holds images that were made with other settings, or by others; or it
            is no folder.
    """
    file = path / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file: name a folder for the images")
    if file.exists():
        found = _read_settings(file)
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if other:
            raise BadInput(
                f"{path} holds images that were made with another {', '.join(other)}: "
                "name another folder, or remove this one"
            )
    elif path.exists() and any(path.iterdir()):
        raise BadInput(
            f"{path} holds files and no {SETTINGS_FILE} that says what made them: name an empty or "
            "a new folder"
        )
    path.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} is damaged ({error}): remove the folder") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file} is damaged (no settings): remove the folder")
    return found

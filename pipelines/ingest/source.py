"""What kind of source the user named."""

import glob
from pathlib import Path

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.folder import FolderSource, walk
from pipelines.ingest.items import IMAGE_SUFFIXES, Source
from pipelines.ingest.parquet import ParquetSource, holds_images
from pipelines.ingest.remote import RemoteSource
from pipelines.ingest.tars import TarSource
from pipelines.ingest.url_list import SUFFIXES, UrlListSource
from schemas.addresses import is_address
from schemas.errors import BadInput


def open_source(source: str | Path, config: IngestConfig) -> Source:
    """Tell folder, tar shards, Parquet with images, URL list, and what lies elsewhere, apart.

    Tars and Parquet files: one, a folder of them, or (tars) a pattern.

    Raises:
        BadInput: nothing is there, it is none of these, or it cannot stay in place.
    """
    opened = _open(source, config)
    if config.in_place and opened.kind != TarSource.kind:
        raise BadInput(
            f"{source} is a {opened.kind}; only uncompressed tar shards can be registered in "
            "place, anything else is copied"
        )
    return opened


def _open(source: str | Path, config: IngestConfig) -> Source:
    text = str(source)
    if is_address(text):
        return RemoteSource(text, config, _open)
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        return _open_folder(path, config)
    if path.is_file():
        if path.suffix.lower() == ".tar":
            return TarSource(str(path), config)
        if path.suffix.lower() == ".parquet" and holds_images(path):
            return ParquetSource(path, [path], config)
        if path.suffix.lower() in SUFFIXES:
            return UrlListSource(path, config)
        raise BadInput(
            f"{path} is no source; name a folder, a .tar, or a list of URLs "
            f"({', '.join(sorted(SUFFIXES))})"
        )
    if glob.has_magic(text):
        return TarSource(str(path), config)
    raise BadInput(f"{path} does not exist; check the path")


def _open_folder(path: Path, config: IngestConfig) -> Source:
    entries = list(walk(path))
    suffixes = {entry.suffix for entry in entries if entry.reason is None}
    if not suffixes:
        raise BadInput(f"{path} is empty; name a folder with JPEG, PNG or WebP images")
    if ".tar" in suffixes and not suffixes & IMAGE_SUFFIXES:
        return TarSource(str(path), config)
    if ".parquet" in suffixes and not suffixes & IMAGE_SUFFIXES:
        files = sorted(
            path / e.name for e in entries if e.reason is None and e.suffix == ".parquet"
        )
        return ParquetSource(path, [file for file in files if holds_images(file)], config)
    return FolderSource(path, config, entries)

"""Ingest: from a folder, tar shards or a URL list to tar shards, `ingest_attempts`, `samples`."""

from pipelines.ingest.config import DownloadConfig, IngestConfig
from pipelines.ingest.run import ingest

__all__ = ["DownloadConfig", "IngestConfig", "ingest"]

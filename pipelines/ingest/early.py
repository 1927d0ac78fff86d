"""Images are decoded while the rest of a download goes on, in processors that would wait."""

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import Fetched, ListedItem, Verified
from pipelines.ingest.verify import (
    CHUNK_ITEMS,
    Verdict,
    num_workers_of,
    start_pool,
    verify_chunk,
    warm_up,
)

# Fewer are verified before processes for it have started.
_MANY_URLS = 500

Place = tuple[str, int]


class EarlyVerifier:
    """Verifies fetched images in the background; what it could not is left for later.

    Use as a context: its processes end with it. An image that ends its process ends the early
    work alone; `verify_all`, which looks at whatever is left, finds out which one it was.
    """

    def __init__(self, config: IngestConfig, num_urls: int) -> None:
        self._config = config
        self._pending: list[tuple[list[Fetched], Future[list[Verdict]]]] = []
        self._pool: ProcessPoolExecutor | None = None
        num_workers = num_workers_of(config)
        if num_urls >= _MANY_URLS and num_workers > 1:
            self._pool = start_pool(num_workers)
            for _ in range(num_workers):
                self._pool.submit(warm_up)

    def __enter__(self) -> "EarlyVerifier":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, fetched: Sequence[Fetched]) -> None:
        """Begin with images that have arrived."""
        there = [one for one in fetched if one.reason is None]
        for start in range(0, len(there), CHUNK_ITEMS):
            chunk = there[start : start + CHUNK_ITEMS]
            items = [
                ListedItem("", "", "", path=one.path, offset=one.offset, num_bytes=one.num_bytes)
                for one in chunk
            ]
            if self._pool is None:
                return
            try:
                limits, most = self._config.limits, self._config.max_image_bytes
                self._pending.append((chunk, self._pool.submit(verify_chunk, items, limits, most)))
            except BrokenProcessPool:
                self._pool = None

    def verified(self) -> dict[Place, Verified]:
        """Wait for what was begun; return what is known of sound images by path and offset."""
        found: dict[Place, Verified] = {}
        for chunk, future in self._pending:
            try:
                verdicts = future.result()
            except BrokenProcessPool:
                break
            for one, verdict in zip(chunk, verdicts, strict=True):
                if verdict.reason is None and verdict.sample_id is not None:
                    found[one.path, one.offset] = verdict.facts
        return found

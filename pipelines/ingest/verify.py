"""Every item is read and decoded once before anything is stored."""

import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from ambient_omni.images import ImageLimits, ImageRejected, inspect
from ambient_omni.progress import progress
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import (
    DECODER_DIED,
    MISSING_FILE,
    TOO_MANY_BYTES,
    UNREADABLE,
    ListedItem,
    Verified,
)
from pipelines.ingest.perceptual import LUMA_SIDE, perceptual_hash, require_imagehash
from schemas.errors import IngestIncomplete
from schemas.ids import sample_id_of

CHUNK_ITEMS = 64
# Starting a process pool takes a few seconds of imports; less work than this is done in place.
INLINE_SECONDS = 4.0
SECONDS_PER_ITEM = 3e-4
SECONDS_PER_BYTE = 15e-9  # JPEG photographs, decode and hashes, one core


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the bytes of one item are: an image, or why not.

    `width` and `height` are in pixels after EXIF orientation; `phash` is a signed 64-bit integer.
    """

    sample_id: str | None = None
    num_bytes: int | None = None
    width: int = 0
    height: int = 0
    format: str = ""
    phash: int = 0
    reason: str | None = None
    detail: str | None = None

    @property
    def facts(self) -> Verified:
        """What is known of an image that was not refused."""
        assert self.sample_id is not None
        return Verified(self.sample_id, self.width, self.height, self.format, self.phash)


def read_item(item: ListedItem) -> bytes:
    """Return the bytes of an item, as they lie.

    Raises:
        OSError: the file system refuses.
    """
    with open(item.path, "rb", buffering=0) as file:  # noqa: PTH123 - called per image
        if item.offset is None:
            return file.readall()
        file.seek(item.offset)
        return file.read(item.num_bytes) or b""


def verify(item: ListedItem, limits: ImageLimits, max_bytes: int) -> Verdict:
    """Read and decode one item; never raises for what the bytes are.

    What was decoded before is only hashed: equal bytes are the same image.
    """
    if item.reason is not None:
        num_bytes = None if item.sample_id is None else item.num_bytes
        return Verdict(item.sample_id, num_bytes, reason=item.reason, detail=item.detail)
    if item.num_bytes > max_bytes:
        detail = f"{item.num_bytes} bytes; the limit is {max_bytes}"
        return Verdict(num_bytes=item.num_bytes, reason=TOO_MANY_BYTES, detail=detail)
    try:
        data = read_item(item)
    except FileNotFoundError:
        return Verdict(reason=MISSING_FILE, detail="gone since it was listed")
    except OSError as error:
        return Verdict(reason=UNREADABLE, detail=error.strerror)
    sample_id = sample_id_of(data)
    if (known := item.verified) is not None and known.sample_id == sample_id:
        return Verdict(sample_id, len(data), known.width, known.height, known.format, known.phash)
    try:
        facts, luma = inspect(data, LUMA_SIDE, limits)
    except ImageRejected as rejected:
        return Verdict(sample_id, len(data), reason=rejected.reason, detail=rejected.detail)
    size = facts.width, facts.height
    return Verdict(sample_id, len(data), *size, facts.format, perceptual_hash(luma))


def verify_all(items: Sequence[ListedItem], config: IngestConfig) -> list[Verdict]:
    """Return the verdict of each item, in order, whatever the number of processes."""
    require_imagehash()  # a missing library is one clear error, not one in each process
    work = partial(verify_chunk, limits=config.limits, max_bytes=config.max_image_bytes)
    chunks = [items[i : i + CHUNK_ITEMS] for i in range(0, len(items), CHUNK_ITEMS)]
    num_workers = num_workers_of(config)
    new = [item for item in items if item.verified is None]
    seconds = len(new) * SECONDS_PER_ITEM + sum(i.num_bytes for i in new) * SECONDS_PER_BYTE
    inline = num_workers == 1 or seconds < INLINE_SECONDS
    results = map(work, chunks) if inline else run_chunks(work, chunks, num_workers)
    verdicts: list[Verdict] = []
    with progress(
        label="verify images", unit="img", total=len(items), show=config.show_progress
    ) as bar:
        for result in results:
            verdicts.extend(result)
            bar.update(len(result))
    return verdicts


def num_workers_of(config: IngestConfig) -> int:
    """Return how many processes verify."""
    return config.num_workers or _num_cores()


def warm_up() -> None:
    """Load in a process of a pool what the first image would wait for."""
    perceptual_hash(np.zeros((32, 32), np.uint8))


def run_chunks(
    work: Callable[[Any], list[Verdict]], chunks: Sequence[Any], num_workers: int
) -> Iterator[list[Verdict]]:
    """Yield `work(chunk)` in order from a pool; a chunk that ends its process is taken apart."""
    pending: deque[tuple[Any, Future[list[Verdict]] | None]] = deque()
    pool = start_pool(num_workers)
    waiting = deque(chunks)
    try:
        while waiting or pending:
            # A window, so that a million items are not a million futures.
            while waiting and len(pending) < 4 * num_workers:
                pending.append(_submit(pool, work, waiting.popleft()))
            chunk, future = pending.popleft()
            try:
                result = None if future is None else future.result()
            except BrokenProcessPool:
                result = None
            if result is None:
                # The pool is gone and with it what it had under way; who did it is not known.
                yield run_isolated(work, chunk)
                pool.shutdown(wait=False)
                pool = start_pool(num_workers)
                pending = deque(
                    (c, f) if f is not None and _succeeded(f) else _submit(pool, work, c)
                    for c, f in pending
                )
            else:
                yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_isolated(work: Callable[[Any], list[Verdict]], chunk: Sequence[Any]) -> list[Verdict]:
    """Run a chunk in a process of its own, halving it until the item that kills it stands alone.

    Raises:
        IngestIncomplete: no process can be started, which is no image's fault.
    """
    with start_pool(1) as pool:
        _require_start(pool)
        try:
            return pool.submit(work, chunk).result()
        except BrokenProcessPool:
            if len(chunk) == 1:
                return [Verdict(reason=DECODER_DIED, detail="the process ended while decoding it")]
    middle = len(chunk) // 2
    return run_isolated(work, chunk[:middle]) + run_isolated(work, chunk[middle:])


def _require_start(pool: ProcessPoolExecutor) -> None:
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise IngestIncomplete(
            "processes that verify images end as soon as they start; set num_workers to 1, or, "
            'where a script calls ingest, do so under `if __name__ == "__main__":`'
        ) from error


def verify_chunk(items: Sequence[ListedItem], limits: ImageLimits, max_bytes: int) -> list[Verdict]:
    """Return the verdict of each item; what a process of a pool runs."""
    return [verify(item, limits, max_bytes) for item in items]


def _submit(
    pool: ProcessPoolExecutor, work: Callable[[Any], list[Verdict]], chunk: Any
) -> tuple[Any, Future[list[Verdict]] | None]:
    try:
        return chunk, pool.submit(work, chunk)
    except BrokenProcessPool:
        return chunk, None


def _succeeded(future: "Future[list[Verdict]]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def start_pool(num_workers: int) -> ProcessPoolExecutor:
    """Return a pool whose processes end with this one, and with the pool."""
    # Not a fork of this process, which may hold threads (Spark, an orchestrator) and locks, but of
    # a server that has none and has loaded what all of them need.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pipelines.ingest.verify", "imagehash"])
    else:
        context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=start_worker, initargs=(reader,)
    )
    # While a pool breaks it may start one more process, which it then neither ends nor uses and
    # would wait for at exit (CPython 3.11). Nobody writes: the end of the pipe is the message.
    weakref.finalize(pool, writer.close)
    return pool


def start_worker(pool: Connection) -> None:
    """Prepare a process of a pool, whose other end of `pool` is closed when the pool is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(pool,), daemon=True).start()


def _end_with(pool: Connection) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, pool])  # a killed parent cannot tell its workers to end
        os._exit(1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Verification of items, alone and in a pool of processes."""

import gc
import io
import multiprocessing

import imagehash
import numpy as np
import pytest
from PIL import Image

from ambient_omni import rng
from ambient_omni.images import inspect
from pipelines.ingest import IngestConfig, ingest, verify
from pipelines.ingest.items import ListedItem
from pipelines.ingest.perceptual import LUMA_SIDE, perceptual_hash
from pipelines.jobs.dedup import Perceptual
from schemas.errors import BadInput, IngestIncomplete
from tests.data.dying_worker import die, double_or_die, wait_as_a_worker
from tests.data.pictures import attempts, encoded, put, samples

QUIET = IngestConfig(show_progress=False)


def test_the_perceptual_hash_is_imagehashs_as_a_signed_integer():
    for seed in range(20):
        luma = rng.generator(seed, "phash").integers(0, 256, (40, 30), dtype=np.uint8)
        expected = int(str(imagehash.phash(Image.fromarray(luma))), 16)
        value = perceptual_hash(luma)
        assert -(2**63) <= value < 2**63
        assert value % 2**64 == expected


def test_a_constant_image_has_a_perceptual_hash():
    assert isinstance(perceptual_hash(np.full((16, 16), 255, np.uint8)), int)


def scene(side):
    """A picture with something at every scale, as a photograph has."""
    fine = rng.generator(0, "scene").normal(0, 1, (1024, 1024))
    spectrum = np.fft.rfft2(fine)
    frequency = np.hypot(np.fft.fftfreq(1024)[:, None], np.fft.rfftfreq(1024)[None])
    waves = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / 1024))
    grey = 128 + 50 * waves / waves.std()
    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.resize((side, side), Image.Resampling.LANCZOS)


def hash_of(image, image_format, **options):
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return perceptual_hash(inspect(out.getvalue(), LUMA_SIDE)[1]) % 2**64


@pytest.mark.parametrize("quality", [60, 95])
def test_the_hash_of_a_jpeg_is_that_of_its_copies_whatever_its_decoder_reduces(quality):
    whole = hash_of(scene(1024), "PNG")
    # Reduced to 1/8, 3/8, 4/8, 5/8 and not at all, by the JPEG decoder or behind the PNG decoder.
    for side in (1024, 341, 256, 215, 100):
        copies = [
            hash_of(scene(side), "PNG"),
            hash_of(scene(side), "JPEG", quality=quality),
            hash_of(scene(side), "JPEG", quality=quality, progressive=True),
        ]
        assert max((copy ^ whole).bit_count() for copy in copies) <= Perceptual().max_distance


def test_a_file_that_went_away_is_a_rejection(tmp_path):
    item = ListedItem("a", "a", "s", path=str(tmp_path / "gone.png"))
    found = verify.verify(item, QUIET.limits, QUIET.max_image_bytes)
    assert (found.reason, found.sample_id) == ("missing_file", None)


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_rows_as_one(root, tmp_path, monkeypatch):
    for number in range(200):
        data = encoded(number) if number % 7 else encoded(number)[:50]
        put(tmp_path / f"in/{number}.png", data)
    ingest(root, "one", tmp_path / "in", QUIET.model_copy(update={"num_workers": 1}))
    monkeypatch.setattr(verify, "INLINE_SECONDS", 0)
    ingest(root, "two", tmp_path / "in", QUIET.model_copy(update={"num_workers": 2}))
    for read in (attempts, samples):
        one, two = read(root, "one"), read(root, "two")
        rows = zip(*(r.values() if isinstance(r, dict) else r for r in (one, two)), strict=True)
        for first, second in rows:
            for name in ("ingest_batch", "sample_row", "shard"):
                first.pop(name, None), second.pop(name, None)
            assert first == second


@pytest.mark.slow
def test_an_item_that_ends_its_process_is_rejected_alone():
    chunks = [[1, 2], [3, -1, 4], [5], [6, 7], [8]]
    results = list(verify.run_chunks(double_or_die, chunks, 2))
    found = [[verdict.reason or verdict.num_bytes for verdict in result] for result in results]
    assert found == [[2, 4], [6, "decoder_died", 8], [10], [12, 14], [16]]


def test_a_process_that_its_pool_forgot_ends_with_the_pool():
    # As one that a pool of CPython 3.11 starts while it breaks: it would be waited for at exit.
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    forgotten = context.Process(target=wait_as_a_worker, args=(reader,))
    forgotten.start()
    forgotten.join(0.5)
    assert forgotten.is_alive()
    writer.close()
    forgotten.join(60)
    assert forgotten.exitcode == 1


def test_a_pool_that_is_gone_has_closed_its_end():
    pool = verify.start_pool(1)
    (reader,) = pool._initargs
    assert pool.submit(double_or_die, [1]).result()
    assert not reader.poll()
    del pool
    gc.collect()
    assert reader.poll(60)


def test_processes_that_cannot_start_are_an_error_and_no_fault_of_the_images(monkeypatch):
    monkeypatch.setattr(verify, "start_worker", die)
    with pytest.raises(IngestIncomplete, match="set num_workers to 1"):
        list(verify.run_chunks(double_or_die, [[1, 2], [3]], 1))


def test_without_imagehash_one_line_names_the_extra(root, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(BadInput, match=r"pip install 'ambient-omni\[ingest\]'"):
        ingest(root, "b", put(tmp_path / "in/a.png", encoded(1)).parent, QUIET)

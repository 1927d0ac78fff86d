import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient_omni import rng
from ambient_omni.data.config import LoaderConfig
from ambient_omni.data.streaming import (
    ChunkSequence,
    StreamingMaker,
    deviation,
    resident_batches,
)
from ambient_omni.noise.usable import Usable
from schemas.errors import BadInput

sizes_of_batches = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def sequence(counts, *, num_ranks=1, rank=0, buffer_samples=30, seed=3):
    batch = np.repeat(np.arange(len(counts)), counts)
    return ChunkSequence(
        np.full(len(batch), 10),
        batch,
        buffer_samples=buffer_samples,
        seed=seed,
        rank=rank,
        num_ranks=num_ranks,
    )


@given(sizes_of_batches, st.integers(0, 5))
def test_every_epoch_opens_every_chunk_once(counts, epoch):
    num_chunks = sum(counts)
    made = sequence(counts, buffer_samples=1)
    opened = [made.window(epoch * num_chunks + k)[0] for k in range(num_chunks)]
    assert sorted(opened) == list(range(num_chunks))


@given(sizes_of_batches, st.integers(2, 3), st.integers(0, 3))
def test_the_processes_share_the_chunks_of_one_sequence(counts, num_ranks, place):
    if sum(counts) < num_ranks:
        return
    alone = sequence(counts, buffer_samples=1)
    for rank in range(num_ranks):
        shared = sequence(counts, num_ranks=num_ranks, rank=rank, buffer_samples=1)
        assert shared.window(place) == alone.window(place * num_ranks + rank)


def test_a_window_is_the_same_whichever_was_asked_for_before():
    one, other = sequence([20, 5]), sequence([20, 5])
    expected = [one.window(k) for k in range(200)]
    for k in (150, 3, 77, 199, 0):
        assert other.window(k) == expected[k]


def test_windows_have_each_batch_s_share_of_chunks():
    made = sequence([200, 20], buffer_samples=550)
    counts = [sum(chunk >= 200 for chunk in made.window(k)) for k in range(400)]
    # 55 chunks of which a 1/11 are of the second batch.
    assert min(counts) >= 4
    assert max(counts) <= 6


def test_a_buffer_that_holds_all_chunks_draws_what_the_pack_loader_draws(maker):
    made = maker()
    # In the second one the pool passes through.
    for buffer_samples in (1000, 29):
        config = LoaderConfig(kind="streaming", buffer_samples=buffer_samples)
        streaming = StreamingMaker(made, config, range(8))
        for step in range(10):
            draw, outside = streaming.draw(step)
            assert outside == 0
            assert draw.index.tolist() == made.draw(step).index.tolist()


def test_draws_are_from_the_open_chunks_at_the_levels_of_the_pack_loader(maker):
    made = maker(prior={"mean": 2.0, "std": 0.5})
    streaming = StreamingMaker(made, LoaderConfig(kind="streaming", buffer_samples=8), range(8))
    windows = set()
    for step in range(40):
        draw, outside = streaming.draw(step)
        windows.add(streaming.window(step))
        assert len(streaming.window(step)) <= 3
        assert outside == 0
        assert set(made.reader.chunk_of(draw.index).tolist()) <= set(streaming.window(step))
        assert (draw.sigma == made.draw(step).sigma).all()
        assert made.usable.allows(draw.index, draw.sigma).all()
    assert len(windows) > 10


def test_a_level_that_no_sample_of_the_buffer_allows_is_drawn_from_all_and_counted(maker):
    made = maker(prior={"mean": -4.0, "std": 0.1})
    streaming = StreamingMaker(made, LoaderConfig(kind="streaming", buffer_samples=1), range(8))
    outside = 0
    for step in range(30):
        draw, here = streaming.draw(step)
        outside += here
        assert made.usable.allows(draw.index, draw.sigma).all()
    # One or two of seven chunks hold references, the only ones for these levels.
    assert 0 < outside < 30 * 8
    assert streaming.batch(0).num_outside_buffer == streaming.draw(0)[1]


def test_a_small_batch_stays_open_and_keeps_its_share_of_the_draws(maker):
    made = maker(prior={"mean": -4.0, "std": 0.1})
    # The eight references fit into half of it.
    streaming = StreamingMaker(made, LoaderConfig(kind="streaming", buffer_samples=16), range(8))
    for step in range(30):
        draw, outside = streaming.draw(step)
        assert outside == 0
        assert draw.index.tolist() == made.draw(step).index.tolist()
        assert set(streaming.window(step)) <= {3, 4, 5, 6, 7}


def test_the_smallest_batches_are_resident_in_half_of_the_buffer():
    sizes = np.array([100, 5, 60, 20])
    assert resident_batches(sizes, 170).tolist() == [False, True, True, True]
    assert resident_batches(sizes, 168).tolist() == [False, True, False, True]
    assert resident_batches(sizes, 1).tolist() == [False] * 4


def test_more_processes_than_chunks_are_refused(maker):
    made = maker()
    with pytest.raises(BadInput, match="a chunk for each of 8 processes, the packs have 7"):
        StreamingMaker(made, LoaderConfig(kind="streaming", buffer_samples=1), range(1))


def shuffled_pool(num_chunks=200, chunk_samples=500):
    draw = rng.generator(0, "streamed pool")
    count = num_chunks * chunk_samples
    sigma_min = np.exp(draw.normal(0.0, 1.0, count))
    sigma_min[draw.random(count) < 0.05] = 0
    return Usable.of(sigma_min, np.zeros(count)), np.repeat(np.arange(num_chunks), chunk_samples)


def sequence_of(chunk, buffer_samples):
    return ChunkSequence(
        np.bincount(chunk),
        np.zeros(200, np.int64),
        buffer_samples=buffer_samples,
        seed=0,
        rank=0,
        num_ranks=1,
    )


def test_the_deviation_from_the_exact_draw_is_small_where_chunks_are_alike():
    usable, chunk = shuffled_pool()
    made = sequence_of(chunk, 10_000)
    for sigma in (0.1, 1.0):
        found = deviation(usable, chunk, made, sigma)
        assert found.total_variation < 0.03
        assert found.outside == 0


def test_where_chunks_differ_samples_of_rich_chunks_are_drawn_less_and_the_deviation_says_so():
    usable, chunk = shuffled_pool()
    # Levels shift from chunk to chunk, as from one good source to a bad one.
    shift = np.exp(rng.generator(0, "shift").normal(0, 1.5, 200))[chunk]
    uneven = Usable.of(usable.sigma_min * shift, np.zeros(len(usable)))
    small = deviation(uneven, chunk, sequence_of(chunk, 1_000), 0.3).total_variation
    large = deviation(uneven, chunk, sequence_of(chunk, 20_000), 0.3).total_variation
    assert large < 0.05 < small


def test_levels_that_most_windows_lack_are_exact_and_read_from_outside():
    usable, chunk = shuffled_pool()
    in_order = Usable.of(np.sort(usable.sigma_min), np.zeros(len(usable)))
    found = deviation(in_order, chunk, sequence_of(chunk, 2_000), 0.05)
    assert found.outside > 0.5
    assert found.total_variation < 0.03


def test_draws_from_buffers_are_as_often_as_the_deviation_computes(maker):
    made = maker(prior={"mean": 4.0, "std": 0.1})
    streaming = StreamingMaker(made, LoaderConfig(kind="streaming", buffer_samples=8), range(8))
    drawn = np.concatenate([streaming.draw(step)[0].index for step in range(1500)])
    # All of the first chunk is held out.
    counts = np.bincount(made.reader.chunk_of(drawn) - 1, minlength=7) / len(drawn)
    chunk = made.reader.chunk_of(np.arange(28)) - 1
    sequence = streaming._sequence
    found = deviation(made.usable, chunk, sequence, float(np.exp(4.0)), 200)
    eligible = np.bincount(chunk[made.usable.at(np.exp(4.0))], minlength=7)
    assert np.abs(counts - eligible / eligible.sum()).sum() / 2 == pytest.approx(
        found.total_variation, abs=0.02
    )

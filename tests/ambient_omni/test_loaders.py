import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.data import chunks
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.chunks import ChunkReader, SamplesLost
from ambient_omni.data.config import LoaderConfig, SamplingConfig
from ambient_omni.data.loaders import make_loader
from ambient_omni.data.training_data import READ_TABLES, open_training_data
from ambient_omni.noise.eligibility import NoEligibleSample
from schemas.errors import BadInput

SIZE = 8


def read(made, start=0, stop=6, positions=range(SIZE), **settings):
    loader = LoaderConfig(buffer_samples=8, **settings)
    return list(make_loader(made, loader, start_step=start, num_steps=stop, positions=positions))


def same(one, other):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            return False
    return True


@pytest.mark.parametrize("kind", ["pack", "streaming"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(maker, kind, num_workers):
    alone = read(maker(), kind=kind)
    together = read(maker(), kind=kind, num_workers=num_workers)
    assert len(alone) == len(together) == 6
    assert all(map(same, alone, together))


@pytest.mark.parametrize("kind", ["pack", "streaming"])
def test_a_run_that_resumes_gets_the_batches_that_it_would_have_had(maker, kind):
    whole = read(maker(), kind=kind, stop=20)
    assert all(map(same, whole[13:], read(maker(), kind=kind, start=13, stop=20)))


def test_a_batch_names_its_samples_and_the_address_of_its_noise(maker):
    made = maker()
    batch = read(made, start=3, stop=4, positions=range(4, 8))[0]
    assert batch.noise_seeds.tolist() == [28, 29, 30, 31]
    fresh = rng.normal_rows([31 % SIZE], (3, 8, 8), made.seed, "noise", 31 // SIZE)
    assert torch.equal(batch.fresh[3:], torch.from_numpy(fresh))
    data = made.data
    assert batch.sample_rows.tolist() == data.sample_rows[batch.index].tolist()
    assert batch.sample_ids == data.sample_ids.names(batch.index.numpy())
    assert len(batch) == 4
    assert batch.to("cpu").sample_ids == batch.sample_ids


def test_the_pixels_are_those_of_the_sample_that_the_batch_names(maker):
    made = maker(horizontal_flip=False)
    for batch in read(made):
        for x0, row in zip(batch.x0, batch.sample_rows.tolist(), strict=True):
            pixels = rng.generator(0, "pixels", row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
            assert torch.allclose(x0, expected, atol=1e-6)


def test_conditions_are_left_out_for_half_of_the_images_as_asked(maker):
    dropped = torch.cat([batch.drop_condition for batch in read(maker(), stop=50)])
    assert 0.4 < dropped.double().mean() < 0.6
    plain = maker()
    assert (
        BatchMaker(plain.data, plain._config).batch(0, plain.draw(0), range(8)).drop_condition
        is None
    )


def lose(root, batch="pool", chunk=1):
    path = next(root.packs.glob(f"*/{batch}/chunk-{chunk:06d}.npy"))
    path.rename(path.with_suffix(".gone"))
    return path


@pytest.mark.parametrize("kind", ["pack", "streaming"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_chunk_that_vanishes_stops_the_run_and_the_sample_is_named(
    chunked, maker, kind, num_workers
):
    made = maker(prior={"mean": 2.0})
    path = lose(chunked)
    lost = made.data.sample_ids.names(np.arange(12, 16))
    with pytest.raises(SamplesLost) as caught:
        read(made, stop=40, kind=kind, num_workers=num_workers)
    message = str(caught.value)
    assert f"{path} vanished under the run: 4 samples are lost" in message
    assert lost[0] in message
    assert "max_missing_samples is 0" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["pack", "streaming"])
def test_up_to_the_stated_limit_others_are_drawn_at_the_same_levels(chunked, maker, kind, caplog):
    plain = read(maker(prior={"mean": 2.0}), stop=40, kind="pack")
    made = maker(prior={"mean": 2.0})
    lose(chunked)
    batches = read(made, stop=40, kind=kind, max_missing_samples=4)
    assert "4 samples are lost" in caplog.text
    drawn = torch.cat([batch.index for batch in batches])
    assert not set(drawn.tolist()) & set(range(12, 16))
    for batch, before in zip(batches, plain, strict=True):
        assert torch.equal(batch.sigma, before.sigma)
        assert made.usable.allows(batch.index.numpy(), batch.sigma.double().numpy()).all()
    if kind == "pack":
        kept = [
            (b.index[i], p.index[i])
            for b, p in zip(batches, plain, strict=True)
            for i in range(SIZE)
            if int(p.index[i]) not in range(12, 16)
        ]
        assert all(a == b for a, b in kept)


def test_more_than_the_limit_stops_the_run(chunked, maker):
    made = maker(prior={"mean": 2.0})
    lose(chunked, chunk=0), lose(chunked, chunk=1)
    with pytest.raises(SamplesLost, match=r"8 lost so far, loader\.max_missing_samples is 7"):
        read(made, stop=40, max_missing_samples=7)


def test_a_level_all_of_whose_samples_are_lost_ends_the_run(chunked, maker):
    made = maker(prior={"mean": -4.0, "std": 0.1})
    lose(chunked, "ref", 1), lose(chunked, "ref", 2)
    with pytest.raises(SamplesLost, match="next to all usable samples are lost"):
        read(made, max_missing_samples=100)


def test_a_chunk_that_was_replaced_is_noticed(chunked, maker):
    made = maker(prior={"mean": 2.0})
    path = lose(chunked)
    path.write_bytes(path.with_suffix(".gone").read_bytes())
    with pytest.raises(SamplesLost, match="changed under the run"):
        read(made, stop=40)


def test_a_chunk_is_looked_at_again_only_after_a_while(chunked, maker, monkeypatch):
    made, clock = maker(), iter([0.0, 1.0, 100.0])
    monkeypatch.setattr(chunks.time, "monotonic", lambda: next(clock))
    reader = ChunkReader(made.data)
    assert reader.look_at(4)
    lose(chunked)
    assert reader.look_at(4)
    with pytest.raises(SamplesLost):
        reader.look_at(4)


def test_a_sample_without_caption_is_named_when_captions_are_asked_for(
    chunked, config, monkeypatch
):
    asked = config(
        condition={"kind": "caption", "text_encoder": "none"}, network={"kind": "unet2d_condition"}
    )
    with pytest.raises(BadInput, match=r"without a caption, the first is [0-9a-f]{64}"):
        open_training_data(chunked, asked, chunked.tables.versions(READ_TABLES))


def test_captions_come_with_the_batch(chunked, config, maker):
    for batch in ("ref", "pool"):
        part = {"ingest_batch": batch}
        table = chunked.tables.read("samples", where=part)
        texts = [f"a picture, {row}" for row in table["sample_row"].to_pylist()]
        place = table.schema.get_field_index("caption")
        table = table.set_column(place, table.schema.field("caption"), [texts])
        chunked.tables.commit("samples", table, slice=part, inputs={"texts": 1}, job="tests")
    made = maker(
        condition={"kind": "caption", "text_encoder": "none"}, network={"kind": "unet2d_condition"}
    )
    for batch in read(made, stop=2):
        assert batch.captions == tuple(f"a picture, {row}" for row in batch.sample_rows.tolist())


def test_source_weights_and_class_balance_need_sources_and_labels_that_exist(chunked, maker):
    with pytest.raises(BadInput, match="source_weights names 'elsewhere', the sources are"):
        maker(sampling={"source_weights": {"elsewhere": 2.0}})
    with pytest.raises(BadInput, match="class_balance needs labels"):
        maker(sampling={"class_balance": "pool"})


def test_settings_of_sampling_are_checked():
    with pytest.raises(ValueError, match="must be positive"):
        SamplingConfig(source_weights={"web": 0.0})
    with pytest.raises(ValueError, match="not with class_balance"):
        SamplingConfig(soft_floors=True, class_balance="uniform")


def test_the_lost_samples_of_a_reader_are_counted_once(chunked, maker):
    made = maker()
    lose(chunked)
    reader = ChunkReader(made.data, max_missing=4)
    assert not reader.missing(np.arange(8)).any()
    for _ in range(2):
        assert reader.missing(np.array([0, 12, 15, 16])).tolist() == [False, True, True, False]
    assert reader.num_missing == 4


def test_every_level_without_an_eligible_sample_is_said_with_the_number_of_samples(maker):
    with pytest.raises(NoEligibleSample, match="none of 20 samples may be used at 0 < sigma"):
        maker(batches=("pool",))


def test_draws_of_a_part_are_those_of_the_whole_at_its_positions(maker):
    draw = maker().draw(2)
    part = draw.at(range(2, 5))
    assert part.index.tolist() == draw.index[2:5].tolist()
    assert replace(draw).at(range(SIZE)).sigma.tolist() == draw.sigma.tolist()
    assert list(itertools.chain(part.sigma)) == draw.sigma[2:5].tolist()

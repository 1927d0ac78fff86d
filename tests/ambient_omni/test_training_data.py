import numpy as np
import pytest
import torch

from ambient_omni.data.annotations import NoiseSpaceMismatch
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.packs import PackMissing
from ambient_omni.data.training_data import READ_TABLES, label_numbers, open_training_data
from ambient_omni.data.transforms import Transform
from ambient_omni.noise.eligibility import NoEligibleSample
from ambient_omni.training.run_record import RunRecord
from schemas.errors import AnnotationMissing, BadInput
from schemas.registry import contract


def versions(root):
    return root.tables.versions(READ_TABLES)


def opened(root, config):
    return open_training_data(root, config, versions(root))


def table_rows(root, batch):
    return root.tables.read("samples", where={"ingest_batch": batch})


def slice_of(batch, policy="policy"):
    return {"policy_id": policy, "ingest_batch": batch}


def test_every_sample_of_the_batches_is_trained_on_but_the_held_out_ones(trainable, config):
    data = opened(trainable, config())
    reference = table_rows(trainable, "ref")["sample_row"].to_numpy()
    pool = table_rows(trainable, "pool")["sample_row"].to_numpy()
    assert data.sample_rows.tolist() == [*reference[4:], *pool]
    assert data.num_held_out == 4
    assert np.isnan(data.annotations.sigma_min).sum() == 5


def test_held_out_bytes_are_held_out_in_every_batch(trainable, config, make_batch, images, tiny):
    # The pool of another day holds two of the validation images.
    twins = images(12, side=8, seed=1)[:2] + images(3, side=8, seed=5)
    table = make_batch(trainable, "more", twins)
    rows = table["sample_row"].to_numpy()
    tiny.annotate(trainable, "more", rows, [0.5] * 5)
    tiny.build_pack(trainable, "more", rows)
    data = opened(trainable, config(batches=("ref", "pool", "more")))
    assert data.num_held_out == 6
    assert not set(rows[:2]) & set(data.sample_rows)


def test_a_sample_without_annotation_is_an_error_that_names_it(trainable, config):
    table = trainable.tables.read("noise_annotations", where=slice_of("pool"))
    trainable.tables.commit(
        "noise_annotations", table.slice(2), slice=slice_of("pool"), inputs={"x": 1}, job="tests"
    )
    first = table["sample_row"][0].as_py()
    with pytest.raises(AnnotationMissing, match=f"2 of 28 samples have no row .*{first}"):
        opened(trainable, config())


def test_a_held_out_sample_needs_no_annotation(trainable, config):
    table = trainable.tables.read("noise_annotations", where=slice_of("ref"))
    trainable.tables.commit(
        "noise_annotations", table.slice(4), slice=slice_of("ref"), inputs={"x": 1}, job="tests"
    )
    assert len(opened(trainable, config())) == 28


def test_a_policy_that_was_never_applied_is_said_at_once(trainable, config):
    with pytest.raises(BadInput, match="no policy 'other' is registered"):
        RunRecord.of(trainable, config(policy_id="other"))
    row = {
        "policy_id": "other",
        "name": "other",
        "kind": "fixed_per_source",
        "parameters": "{}",
        "noise_space": "pixel:8x8:lanczos:center:pm1",
    }
    trainable.tables.upsert("policies", contract("policies").table([row]), job="tests")
    with pytest.raises(AnnotationMissing, match="policy other was never applied to batch ref"):
        RunRecord.of(trainable, config(policy_id="other"))


def test_levels_of_another_noise_space_are_refused(trainable, config, tiny):
    wide = Transform(resolution=16)
    for batch in ("ref", "pool"):
        tiny.build_pack(trainable, batch, table_rows(trainable, batch)["sample_row"], wide)
    with pytest.raises(NoiseSpaceMismatch, match=r"in pixel:8x8.* measures them in pixel:16"):
        opened(trainable, config(transform=wide))


def test_a_missing_pack_is_said(trainable, config):
    with pytest.raises(PackMissing, match="no complete pack of batch 'ref'"):
        opened(trainable, config(transform=Transform(resolution=16)))


def test_excluded_samples_are_not_trained_on(trainable, config):
    gone = table_rows(trainable, "pool")["sample_id"][0].as_py()
    taken_down = {"sample_id": gone, "excluded_at": 0, "why": "asked"}
    table = contract("exclusions").table([taken_down])
    trainable.tables.upsert("exclusions", table, job="tests")
    assert len(opened(trainable, config())) == 27


def test_a_pool_without_a_sample_for_low_levels_is_refused(trainable, config):
    data = opened(trainable, config(batches=("pool",)))
    with pytest.raises(NoEligibleSample, match=r"0 < sigma < 0\.2"):
        BatchMaker(data, config(batches=("pool",)))
    BatchMaker(data, config(batches=("pool",), prior={"lowest": 0.2}))


def test_only_held_out_samples_leave_nothing_to_train_on(trainable, config):
    with pytest.raises(BadInput, match="no sample to train on"):
        opened(trainable, config(batches=("nothing",)))


def test_ranks_share_the_batch_that_one_process_would_have(trainable, config):
    made = config(objective="ambient", prior={"mean": 1.0})
    maker = BatchMaker(opened(trainable, made), made)
    draw = maker.draw(5)
    whole = maker.batch(5, draw, range(8))
    halves = [maker.batch(5, draw, part) for part in (range(4), range(4, 8))]
    for name in ("x0", "sigma", "hidden", "fresh", "fixed"):
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(joined, getattr(whole, name)), name


def test_a_step_is_the_same_whatever_was_drawn_before(trainable, config):
    one, other = (BatchMaker(opened(trainable, config()), config()) for _ in range(2))
    one.draw(3)
    assert np.array_equal(one.draw(9).sigma, other.draw(9).sigma)
    assert np.array_equal(one.draw(9).index, other.draw(9).index)
    assert not np.array_equal(one.draw(9).sigma, one.draw(10).sigma)


def test_every_draw_is_at_a_level_that_its_sample_allows(trainable, config):
    maker = BatchMaker(opened(trainable, config()), config())
    for step in range(50):
        draw = maker.draw(step)
        floor = maker.usable.floor[draw.index]
        assert (draw.sigma >= floor).all()


def test_the_noise_that_hides_an_image_is_fixed_and_mirrored_with_it(trainable, config):
    made = config(objective="ambient", prior={"mean": 1.5}, batch_size=64)
    maker = BatchMaker(opened(trainable, made), made)
    seen = {}
    for step in range(4):
        draw = maker.draw(step)
        batch = maker.batch(step, draw, range(64))
        for index, fixed in zip(draw.index, batch.fixed, strict=True):
            seen.setdefault(int(index), []).append(fixed)
    mirrored_somewhere = False
    for noises in seen.values():
        for noise in noises:
            mirrored = torch.equal(noise, noises[0].flip(-1))
            assert mirrored or torch.equal(noise, noises[0])
            mirrored_somewhere |= mirrored
    assert mirrored_somewhere


def test_the_gated_objective_hides_nothing(trainable, config):
    maker = BatchMaker(opened(trainable, config()), config())
    batch = maker.batch(0, maker.draw(0), range(8))
    assert batch.fixed is None
    assert not batch.hidden.any()


def test_the_run_id_changes_with_config_and_data_and_not_with_other_batches(
    trainable, config, make_batch, images
):
    first = RunRecord.of(trainable, config()).run_id
    assert RunRecord.of(trainable, config(name="other")).run_id == first
    assert RunRecord.of(trainable, config(seed=1)).run_id != first
    make_batch(trainable, "elsewhere", images(3, side=8, seed=9))
    assert RunRecord.of(trainable, config()).run_id == first
    table = trainable.tables.read("noise_annotations", where=slice_of("pool"))
    trainable.tables.commit(
        "noise_annotations", table, slice=slice_of("pool"), inputs={"new": 1}, job="tests"
    )
    assert RunRecord.of(trainable, config()).run_id != first


def test_labels_are_numbers_of_known_names():
    assert label_numbers(["b", "a"], ["a", "b"], "images").tolist() == [1, 0]
    assert label_numbers([None], [], "images") is None
    with pytest.raises(BadInput, match="1 images have no label that the model knows"):
        label_numbers(["c"], ["a"], "images")

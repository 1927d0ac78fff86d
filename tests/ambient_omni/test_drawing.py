import json

import numpy as np
import pyarrow as pa
import pytest

from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.drawing import skew_lines
from ambient_omni.data.training_data import READ_TABLES, open_training_data
from ambient_omni.noise.soft import acceptance, rate_of_slope
from ambient_omni.training.plan import usable_lines
from schemas.errors import BadInput
from schemas.registry import contract


def opened(root, config):
    return open_training_data(root, config, root.tables.versions(READ_TABLES))


@pytest.fixture
def labelled(chunked):
    """The tiny root: references are cats of a museum, the pool dogs of the web."""
    for batch, label in (("ref", "cat"), ("pool", "dog")):
        part = {"ingest_batch": batch}
        table = chunked.tables.read("samples", where=part)
        for column, value in (("label", label), ("source", f"{label} photos")):
            place = table.schema.get_field_index(column)
            field = table.schema.field(column)
            table = table.set_column(place, field, [[value] * table.num_rows])
        chunked.tables.commit("samples", table, slice=part, inputs={"label": 1}, job="tests")
    return chunked


def drawn_labels(root, made, steps=400):
    data = opened(root, made)
    maker = BatchMaker(data, made)
    index = np.concatenate([maker.draw(step).index for step in range(steps)])
    return np.bincount(data.labels[index], minlength=2) / len(index)


LABEL = {"kind": "label"}
LOW = {"mean": -0.5, "std": 0.3}


def test_classes_keep_their_share_of_the_pool_or_get_equal_ones_as_asked(labelled, config):
    # 8 cats are usable everywhere; of 20 dogs 5 from 0.2, 5 from 0.5, 5 from 1, 5 never.
    def shares(balance):
        sampling = {"class_balance": balance}
        made = config(condition=LABEL, prior={**LOW, "lowest": 0.2}, sampling=sampling)
        return drawn_labels(labelled, made)

    assert shares("none")[0] > 0.4
    assert shares("pool")[0] == pytest.approx(8 / 28, abs=0.03)
    assert shares("uniform")[0] == pytest.approx(1 / 2, abs=0.03)


def test_a_source_of_double_weight_is_drawn_twice_as_often_for_its_samples(labelled, config):
    sampling = {"source_weights": {"cat photos": 2.0}}
    made = config(condition=LABEL, prior={"mean": 4.0, "std": 0.1}, sampling=sampling)
    assert drawn_labels(labelled, made)[0] == pytest.approx(16 / 31, abs=0.03)


def test_the_skew_of_every_band_is_said(labelled, config):
    made = config(condition=LABEL)
    data = opened(labelled, made)
    lines = skew_lines(data, BatchMaker(data, made).usable, (0.05, 0.1, 2.0, 8.0))
    assert lines[0].endswith("skew by source")
    assert lines[4].endswith("skew by class")
    # Below 0.1 all draws are cats, 8 of the 28 samples.
    assert "71.4%   cat: 100.0% of the draws, 28.6% of the samples" in lines[5]
    # From 1 on 8 of 23 are.
    assert "6.2%   cat: 34.8% of the draws" in lines[7]


def annotate_with_slopes(root, tau):
    for batch in ("ref", "pool"):
        part = {"policy_id": "policy", "ingest_batch": batch}
        table = root.tables.read("noise_annotations", where=part)
        levels = table["sigma_min"].to_pylist()
        place = table.schema.get_field_index("slope")
        slopes = pa.array([0.5 if level else None for level in levels], pa.float64())
        table = table.set_column(place, table.schema.field("slope"), slopes)
        root.tables.commit("noise_annotations", table, slice=part, inputs={"s": 1}, job="tests")
    row = {
        "policy_id": "policy",
        "name": "soft",
        "kind": "classifier_threshold",
        "parameters": json.dumps({"tau": tau}),
        "noise_space": "pixel:8x8:lanczos:center:pm1",
    }
    root.tables.upsert("policies", contract("policies").table([row]), job="tests")


def test_soft_floors_draw_by_acceptance(chunked, config):
    annotate_with_slopes(chunked, 0.45)
    made = config(sampling={"soft_floors": True}, prior={"mean": -1.2, "std": 0.001})
    data = opened(chunked, made)
    maker = BatchMaker(data, made)
    index = np.concatenate([maker.draw(step).index for step in range(2000)])
    counts = np.bincount(index, minlength=28) / len(index)
    minimum = data.annotations.sigma_min
    rate = rate_of_slope(np.where(minimum > 0, 0.5, np.nan), 0.45)
    expected = acceptance(np.exp(-1.2), minimum, rate, 0.45)
    assert 0 < expected[minimum == 0.5][0] < 0.9
    assert counts == pytest.approx(expected / expected.sum(), abs=0.01)


def test_a_dry_run_under_soft_floors_counts_what_is_accepted_and_states_the_error(chunked, config):
    annotate_with_slopes(chunked, 0.45)
    made = config(sampling={"soft_floors": True}, prior={"highest": 0.19})
    maker = BatchMaker(opened(chunked, made), made)
    hard = config(prior={"highest": 0.19})
    # Levels end below the lowest sigma_min, and the pool is still drawn, but for the nulls.
    assert BatchMaker(opened(chunked, hard), hard).num_unreachable == 20
    assert maker.num_unreachable == 5
    lines = usable_lines(maker, made)
    middle = np.geomspace(0.1, 0.2, 65)[1::2, None]
    minimum = maker.data.annotations.sigma_min
    rate = rate_of_slope(np.where(minimum > 0, 0.5, np.nan), 0.45)
    mean = acceptance(middle, minimum, rate, 0.45).sum(axis=1).mean()
    (line,) = [line for line in lines if line.startswith("    0.1 ..")]
    assert float(line.split()[4]) == pytest.approx(mean, rel=0.02)
    assert float(lines[-1].split(" by ")[2].split("%")[0]) < 2


def test_soft_floors_need_a_threshold_and_the_gated_objective(chunked, config):
    with pytest.raises(BadInput, match="policy policy has no threshold tau"):
        opened(chunked, config(sampling={"soft_floors": True}))
    for tau in ([0.3, 0.45], 0.6):
        annotate_with_slopes(chunked, tau)
        with pytest.raises(BadInput, match="one threshold tau between 0 and"):
            opened(chunked, config(sampling={"soft_floors": True}))
    annotate_with_slopes(chunked, 0.45)
    made = config(sampling={"soft_floors": True}, objective="ambient")
    with pytest.raises(BadInput, match="soft_floors do not go with the ambient objective"):
        BatchMaker(opened(chunked, made), made)

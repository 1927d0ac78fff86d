import pytest

from dagster_project.arms import config_of, policies_of, policy_of
from dagster_project.recipe import parse_recipe
from dagster_project.request import BatchRequest
from pipelines.jobs.annotate import annotate
from pipelines.policies import PilotCalibrated
from pipelines.scorers import PACKS
from schemas.errors import BadInput, TableMissing
from schemas.registry import contract
from tests.ambient_omni.conftest import define_set
from tests.dagster_project.conftest import ARMS, add_pool


def test_a_soft_arm_is_trained_with_soft_floors_and_a_hard_one_is_not(root, request_):
    recipe = request_.full_recipe
    assert config_of(root, request_, recipe, "soft").sampling.soft_floors
    assert not config_of(root, request_, recipe, "annotated").sampling.soft_floors
    ids = [policy_of(root, request_, recipe, arm).policy_id for arm in ("soft", "annotated")]
    assert ids[0] != ids[1]


def test_thresholds_by_sample_size_are_frozen_before_a_new_batch(
    root, request_, make_batch, images
):
    recipe = request_.full_recipe
    first = policy_of(root, request_, recipe, "counted")
    annotate(root, "pool", first)
    add_pool(root, make_batch, images, "later", 40)
    grown = request_.with_batches([BatchRequest(name="later", role="pool", source="x")])
    assert policy_of(root, grown, recipe, "counted") == first
    changed = parse_recipe(
        {**request_.recipe, "arms": {**ARMS, "counted": {"kind": "sample_size", "constant": 9.0}}},
        "test",
    )
    assert policy_of(root, grown, changed, "counted").n_pool == 16


def test_sources_keep_their_level_and_later_ones_are_added(root, request_, make_batch, images):
    arms = {**ARMS, "by_source": {"kind": "classifier_per_source"}}
    recipe = parse_recipe({**request_.recipe, "arms": arms}, "test")
    first = policy_of(root, request_, recipe, "by_source")
    assert set(first.levels) == {"folder"}
    annotate(root, "pool", first)
    assert policy_of(root, request_, recipe, "by_source").policy_id == first.policy_id
    add_pool(root, make_batch, images, "later", 40)
    add_pool(root, make_batch, images, "foreign", 4, source="elsewhere")
    grown = request_.with_batches(
        [BatchRequest(name=name, role="pool", source="x") for name in ("later", "foreign")]
    )
    second = policy_of(root, grown, recipe, "by_source")
    assert second.levels["folder"] == first.levels["folder"]
    assert second.levels["elsewhere"] > first.levels["folder"]
    annotate(root, "foreign", second)
    assert policy_of(root, grown, recipe, "by_source").policy_id == second.policy_id


def by_source(request_):
    arms = {**ARMS, "by_source": {"kind": "classifier_per_source"}}
    return parse_recipe({**request_.recipe, "arms": arms}, "test")


def test_a_batch_that_is_not_graded_yet_keeps_no_other_from_its_levels(
    root, request_, make_batch, images
):
    recipe = by_source(request_)
    first = policy_of(root, request_, recipe, "by_source")
    annotate(root, "pool", first)
    make_batch(root, "ungraded", images(3, seed=9), source="new")
    grown = request_.with_batches([BatchRequest(name="ungraded", role="pool", source="x")])
    assert policy_of(root, grown, recipe, "by_source").policy_id == first.policy_id
    with pytest.raises(BadInput, match="no level for source 'new'"):
        annotate(root, "ungraded", first)


def test_a_source_of_references_alone_is_not_waited_for(root, request_, make_batch, images):
    recipe = by_source(request_)
    first = policy_of(root, request_, recipe, "by_source")
    annotate(root, "pool", first)
    add_pool(root, make_batch, images, "chosen", 40, source="chosen")
    rows = root.tables.read("samples", where={"ingest_batch": "chosen"})["sample_row"].to_pylist()
    define_set(root, "validation", rows)
    grown = request_.with_batches([BatchRequest(name="chosen", role="pool", source="x")])
    found = policy_of(root, grown, recipe, "by_source")
    assert found.policy_id == first.policy_id
    annotate(root, "chosen", found)


def test_the_border_of_a_rank_is_of_one_version_of_its_scorer(root, request_, monkeypatch):
    arms = {**ARMS, "ranked": {"kind": "quality_rank", "column": "sharpness", "good_fraction": 0.5,
                               "sigma_min_rest": None}}  # fmt: skip
    recipe = parse_recipe({**request_.recipe, "arms": arms}, "test")
    put_scores(root, "old")
    monkeypatch.setitem(PACKS["classical"].__dict__, "version", "old")
    first = policy_of(root, request_, recipe, "ranked")
    annotate(root, "pool", first)
    assert policy_of(root, request_, recipe, "ranked") == first
    monkeypatch.setitem(PACKS["classical"].__dict__, "version", "new")
    with pytest.raises(TableMissing, match="of version new; run score"):
        policy_of(root, request_, recipe, "ranked")
    put_scores(root, "new")
    second = policy_of(root, request_, recipe, "ranked")
    assert (first.scorer_version, second.scorer_version) == ("old", "new")


def put_scores(root, version):
    rows = root.tables.read("samples", where={"ingest_batch": "pool"})["sample_row"].to_pylist()
    table = contract("scores/classical")
    values = [
        {column.name: None for column in table.columns}
        | {"sample_row": row, "ingest_batch": "pool", "scorer_version": version,
           "sharpness": float(row)}
        for row in rows
    ]  # fmt: skip
    slice_ = {"scorer_version": version, "ingest_batch": "pool"}
    root.tables.commit(
        "scores/classical", table.table(values), slice=slice_, inputs={"v": version}, job="tests"
    )


def test_a_soft_threshold_gives_no_level_per_source(request_):
    rule = {"kind": "classifier_per_source"}
    rule["threshold"] = {"soft": True}
    with pytest.raises(BadInput, match="hard floor"):
        parse_recipe({**request_.recipe, "arms": {**ARMS, "by_source": rule}}, "test")


def test_a_question_does_not_start_a_training(root, request_):
    recipe = request_.full_recipe
    with pytest.raises(TableMissing, match="arm 'piloted': its pilots were not run yet"):
        policy_of(root, request_, recipe, "piloted")
    with pytest.raises(TableMissing, match="arm 'foreign': its crop_classifier was not made"):
        policies_of(
            root,
            request_,
            recipe.model_copy(
                update={"arms": {n: r for n, r in recipe.arms.items() if n != "piloted"}}
            ),
        )


def test_pilots_that_were_run_are_found_again_also_after_a_new_batch(root, request_, monkeypatch):
    from pipelines.pilot import run

    recipe, seen = request_.full_recipe, []

    def calibrate(where, config):
        seen.append(config)
        policy = PilotCalibrated(
            noise_space=recipe.transform.noise_space,
            classifier_id="c1",
            pilot_id="p",
            edges=(),
            tau=(0.3,),
        )
        return run.PilotResult("p", policy, [], 1.0, ())

    monkeypatch.setattr(run, "calibrate", calibrate)
    first = policy_of(root, request_, recipe, "piloted", make=True)
    assert first.name == "piloted"
    assert seen[0].batches == ("reference", "pool")
    assert seen[0].run_images == recipe.training.num_images
    assert seen[0].train_config("x", "x").num_images == 100
    grown = request_.with_batches([BatchRequest(name="later", role="pool", source="x")])
    assert policy_of(root, grown, recipe, "piloted") == first
    assert len(seen) == 1


def test_a_soft_floor_under_a_window_is_refused():
    floor = {"kind": "classifier_threshold", "soft": True}
    arms = {**ARMS, "foreign": {"kind": "crop_window", "floor": floor}}
    with pytest.raises(BadInput, match="keeps a hard floor"):
        parse_recipe({"arms": arms}, "test")


def test_tau_is_corrected_for_the_good_share_of_the_pool(root, request_):
    def tau_of(share):
        rule = {"kind": "classifier_threshold", "good_share": share}
        recipe = parse_recipe({**request_.recipe, "arms": {**ARMS, "annotated": rule}}, "test")
        return policy_of(root, request_, recipe, "annotated").tau

    assert tau_of(0.0) == 0.45
    assert tau_of(0.5) == pytest.approx(1 / (1.5 + 0.5 * 0.55 / 0.45))
    with pytest.raises(BadInput, match="no estimate of the pool's good share"):
        tau_of("measured")

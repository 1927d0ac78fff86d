import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ambient_omni import rng
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.transforms import Transform
from ambient_omni.evaluation import HeldOutLoss, keep_heldout
from pipelines.report import ReportInputs, build_report
from pipelines.report.drawing.mosaic import mosaic
from schemas.errors import AnnotationMissing, BadInput, TableMissing
from schemas.registry import contract
from schemas.root import write_json

TRANSFORM = Transform(resolution=8)
HOSTILE = '"><script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(2)>$x_{'
KINDS = ("gaussian_blur", "down_up", "jpeg")
SIGMAS = [0.1, 0.3, 1.0, 3.0]
ARMS = {"only_reference": "r-only", "everything": "r-all", "annotated": "r-annotated"}
POLICIES = {"only_reference": "p-null", "everything": "p-zero", "annotated": "p-main"}
NUM_POOL = 60


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def made(root, make_batch, images):
    """A root with all that a report reads; returns its ReportInputs."""
    sources = ["web", "scans"] * (NUM_POOL // 2)
    pool = _with_captions(root, make_batch(root, "pool", images(NUM_POOL, 8), source=sources))
    trusted = make_batch(root, "ref", images(12, 8, seed=1), role="reference")
    _pack(root, "pool", pool, images(NUM_POOL, 8))
    sigma_min = _levels()
    _annotate(root, "p-main", "pool", pool, sigma_min)
    _annotate(root, "p-zero", "pool", pool, [0.0] * NUM_POOL)
    _annotate(root, "p-null", "pool", pool, [None] * NUM_POOL)
    for policy in POLICIES.values():
        _annotate(root, policy, "ref", trusted, [0.0] * 12)
    _references(root, trusted)
    _policy(root)
    _classifier(root, pool)
    _measures(root, pool)
    for number, arm in enumerate(ARMS):
        _run(root, arm, shift=(0.3, 0.2, 0.0)[number])
    _attempts(root, pool)
    return ReportInputs(
        arms=ARMS,
        main_policy_id="p-main",
        classifier_id="c1",
        pool_batches=("pool",),
        reference_batch="ref",
        transform=TRANSFORM,
        truth=_truth(root, pool),
    )


def _levels():
    """Levels that grow with severity: a third undamaged, one never usable."""
    levels = [0.0 if n % 3 == 0 else 0.1 * (1 + n % 4) for n in range(NUM_POOL)]
    return [*levels[:-1], None]


def _rank_of(level):
    return 9.0 if level is None else level


def _with_captions(root, table):
    captions = [HOSTILE if n == 0 else None for n in range(table.num_rows)]
    place = table.schema.get_field_index("caption")
    table = table.set_column(place, table.schema.field("caption"), pa.array(captions))
    _commit(root, "samples", table, ingest_batch="pool")
    return table


def _commit(root, name, data, **slice_):
    table = data if isinstance(data, pa.Table) else contract(name).table(data)
    inputs = {"by": "test_report", "slice": slice_, "rows": str(table.to_pylist())}
    root.tables.commit(name, table, slice=slice_, inputs=inputs, job="tests")


def _pack(root, batch, table, pixels):
    writer = PackWriter(root.packs, TRANSFORM, batch, "tests")
    writer.begin()
    with writer.chunk(0) as chunk:
        for row, image in zip(table["sample_row"].to_pylist(), pixels, strict=True):
            chunk.add(row, image)
    writer.finish([chunk.info])


def _annotate(root, policy, batch, table, sigma_min):
    def reason(level):
        if level is None:
            return "never_crosses"
        return "crossing" if level else "usable_everywhere"

    rows = [
        {
            "sample_row": row,
            "ingest_batch": batch,
            "policy_id": policy,
            "sigma_min": level,
            "sigma_max": 0.0,
            "noise_space": TRANSFORM.noise_space,
            "slope": None,
            "sigma_min_standard_error_octaves": None,
            "reason": reason(level),
        }
        for row, level in zip(table["sample_row"].to_pylist(), sigma_min, strict=True)
    ]
    _commit(root, "noise_annotations", rows, policy_id=policy, ingest_batch=batch)


def _references(root, table):
    rows = table["sample_row"].to_pylist()
    for name, members in (("trusted", rows[:8]), ("validation", rows[8:])):
        found = [{"reference_set": name, "sample_row": row, "role": name} for row in members]
        _commit(root, "reference_sets", found, reference_set=name)


def _policy(root):
    row = {
        "policy_id": "p-main",
        "name": "annotated",
        "kind": "classifier_threshold",
        "parameters": json.dumps({"tau": 0.45, "classifier_id": "c1"}),
        "noise_space": TRANSFORM.noise_space,
    }
    root.tables.upsert("policies", contract("policies").table([row]), job="tests")


def _classifier(root, pool):
    finding = {"severity": 2.0, "tv_lower_bound": 0.8, "tv_standard_error": 0.1, "found": True}
    row = {
        "classifier_id": "c1",
        "question": "reference_against_pool",
        "reference_set": "trusted",
        "pool_batches": ["pool"],
        "noise_space": TRANSFORM.noise_space,
        "num_folds": 2,
        "sigmas": SIGMAS,
        "balanced_accuracy": [0.9, 0.8, 0.6, 0.5],
        "tv_lower_bound": [0.8, 0.6, 0.2, 0.0],
        "tv_standard_error": [0.05] * 4,
        "control": json.dumps({"bar": 0.05, "planted": {"gaussian_blur": finding}}),
        "config": "{}",
        "weights_sha256": "0" * 64,
        "status": "promoted",
        "code_version": "tests",
    }
    root.tables.upsert("noise_classifiers", contract("noise_classifiers").table([row]), job="t")
    curves = [
        {
            "sample_row": number,
            "ingest_batch": "pool",
            "classifier_id": "c1",
            "fold": 0,
            "logits": [-3.0, -1.0, -0.2, 0.0],
            "logit_standard_error": [0.1] * 4,
        }
        for number in pool["sample_row"].to_pylist()
    ]
    _commit(root, "noise_curves", curves, classifier_id="c1", ingest_batch="pool")


def _measures(root, pool):
    rows = pool["sample_row"].to_pylist()
    wanted = contract("scores/classical")
    constant = {c.name: 1.0 for c in wanted.columns if pa.types.is_float64(c.type)}
    scores = [
        {
            **constant,
            # The sharper, the lower the level; one could not be had.
            "sharpness": None if n == 1 else 10 / (1 + _rank_of(_levels()[n])),
            "sample_row": row,
            "ingest_batch": "pool",
            "scorer_version": "v1",
            "unscored_reason": "sharpness: too small" if n == 1 else None,
        }
        for n, row in enumerate(rows)
    ]
    _commit(root, "scores/classical", scores, scorer_version="v1", ingest_batch="pool")


def _run(root, arm, shift):
    run_id = ARMS[arm]
    folder = root.runs / run_id
    folder.mkdir(parents=True)
    lines = [
        {"step": 10 * n, "images": 100 * n, "loss": 1 / n, "held_out_total": 2 / n}
        for n in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "samples.png").write_bytes(mosaic(np.zeros((4, 8, 8, 3), np.uint8)))
    keep_heldout(folder, held_out(shift))
    row = {
        "run_id": run_id,
        "name": arm,
        "policy_id": POLICIES[arm],
        "ingest_batches": ["pool", "ref"],
        "table_versions": json.dumps({"samples": 3}),
        "noise_space": TRANSFORM.noise_space,
        "config": json.dumps(
            {
                "prior": {"mean": -0.6, "std": 1.1},
                "objective": "gated",
                "max_amplification": 4.0,
                "of_another_release": 1,
            }
        ),
        "code_version": "tests",
        "status": "finished",
        "num_images_seen": 400,
        "checkpoint": None,
        "metrics": "{}",
        "audit": json.dumps({"num_draws": 1234, "bands": [1, 2]}),
    }
    root.tables.upsert("training_runs", contract("training_runs").table([row]), job="tests")


def held_out(shift, num_images=40, rows_from=0, spread=0.01, name="evaluation"):
    """Losses of images that differ far more from each other than the arms do."""
    images = 1 + rng.uniform(num_images, 0, "report-images")
    noise = spread * rng.normal((num_images, len(SIGMAS)), 0, "report-noise", str(shift))
    losses = images[:, None] + shift / len(SIGMAS) + noise
    total = losses.sum(axis=1)
    zeros = [0.0] * len(SIGMAS)
    return HeldOutLoss(
        reference_set=name,
        checkpoint="step-00000030",
        num_images=num_images,
        num_noises=2,
        sigmas=SIGMAS,
        weighted=losses.mean(axis=0).tolist(),
        weighted_standard_error=zeros,
        unweighted=zeros,
        unweighted_standard_error=zeros,
        total=float(total.mean()),
        total_standard_error=float(total.std(ddof=1) / np.sqrt(num_images)),
        sample_rows=list(range(rows_from, rows_from + num_images)),
        per_image=losses.tolist(),
    )


def _attempts(root, pool):
    sample_ids = pool["sample_id"].to_pylist()
    common = {"ingest_batch": "pool", "source_uri": "x", "caption": None, "label": None}
    stored = [
        {
            **common,
            "attempt_key": f"{n}.png",
            "source": "web",
            "status": "stored",
            "reason": None,
            "detail": None,
            "num_bytes": 10,
            "sample_id": sample_ids[n],
            "sample_row": row,
        }
        for n, row in enumerate(pool["sample_row"].to_pylist())
    ]
    refused = [
        {
            **common,
            "attempt_key": f"bad{n}<b>.png",
            "source": "<i>web</i>",
            "status": "rejected",
            "reason": "truncated",
            "detail": None,
            "num_bytes": 10,
            "sample_id": None,
            "sample_row": None,
        }
        for n in range(2)
    ]
    _commit(root, "ingest_attempts", [*stored, *refused], ingest_batch="pool")


def _truth(root, pool):
    rows = []
    for n, sample_id in enumerate(pool["sample_id"].to_pylist()):
        damaged = n % 3 != 0
        kind = KINDS[(n // 4) % 3] if damaged else "none"
        severity = float(1 + n % 4) if damaged else 0.0
        rows.append({"sample_id": sample_id, "kind": kind, "severity": severity, "source": "x"})
    path = root.path / "truth.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path):
    html = path.read_text(encoding="utf-8")
    return Page(html), json.loads((path.parent / "report.json").read_text())


_built = {}


@pytest.fixture
def built(root, made):
    """(page, figures) of the root as made; drawn once for all tests that only read it."""
    if not _built:
        path = build_report(root, made)
        _built["page"] = (*read(path), path.read_text(encoding="utf-8"))
    return _built["page"]


def test_the_page_says_which_arm_is_best_with_figures_and_errors(built):
    page, figures, _ = built
    assert figures["best"] == "annotated"
    assert figures["main_arm_is_best"] is True
    assert "“Annotated” is best: held-out loss" in page.text
    assert "summed over 4 noise levels, on 40 evaluation images" in page.text
    assert figures["headline"] in page.text
    for arm in ("only_reference", "everything"):
        assert figures["paired_difference_to_best"][arm]["is_clear"]
    assert figures["paired_difference_to_best"]["everything"]["mean"] == pytest.approx(
        0.2, abs=0.02
    )


def test_the_page_says_so_when_the_annotated_arm_is_not_best(root, made):
    keep_heldout(root.runs / ARMS["annotated"], held_out(0.5))
    page, figures = read(build_report(root, made))
    assert figures["best"] == "everything"
    assert figures["main_arm_is_best"] is False
    assert "“Everything” is best" in page.text
    assert "“Annotated” is worse than “only reference”" in page.text


def test_everything_is_in_one_file_that_asks_nothing_of_the_network(built):
    page, _, html = built
    sources = [attrs["src"] for attrs in page.all("img")]
    assert len(sources) > NUM_POOL
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not page.all("script")
    assert not page.all("link")
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert all(attrs["href"].startswith("#") for attrs in page.all("a"))
    assert "url(" not in html
    assert len(html) < 6e6
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_captions_and_names_from_anybody_are_text_and_nothing_else(built):
    page, *_ = built
    titles = [attrs.get("title", "") for attrs in page.all("figure")]
    assert any(title.startswith(HOSTILE) for title in titles)
    assert "<i>web</i>" in page.text
    assert not page.all("i") or all("style" in attrs for attrs in page.all("i"))


def test_the_gallery_goes_from_every_level_to_never(built):
    page, *_ = built
    every = page.text.index("Usable at every noise level")
    some = page.text.index("Usable from σ =")
    never = page.text.index("Usable at no high noise level")
    assert every < some < never


def test_the_levels_are_compared_with_the_truth(built):
    page, figures, _ = built
    truth = figures["truth"]
    assert set(truth["kinds"]) == set(KINDS)
    assert truth["kinds"]["gaussian_blur"]["medians_grow"]
    assert truth["kinds"]["gaussian_blur"]["rank_correlation"] == pytest.approx(1)
    assert truth["blur_like_rank_correlation"] > 0.9
    assert truth["undamaged_shares"]["everywhere"] == 1
    assert "Against the truth" in page.text
    assert any("gaussian blur" in a.get("title", "") for a in page.all("figure"))


def test_counts_shares_scores_and_parents_are_told(built):
    page, figures, _ = built
    assert "truncated 2" in page.text
    assert figures["num_pool_images"] == NUM_POOL
    assert sum(figures["pool_shares"].values()) == pytest.approx(1)
    assert set(figures["pool_shares_by_source"]) == {"web", "scans"}
    assert figures["references_usable_everywhere"] == 1
    # Constant scores tell nothing apart and are left out.
    assert list(figures["score_rank_correlation"]) == ["sharpness"]
    assert figures["score_rank_correlation"]["sharpness"] < -0.9
    for parent in ("r-annotated", "p-main", "samples@3", TRANSFORM.noise_space, "num draws 1,234"):
        assert parent in page.text


def test_the_classifier_shows_its_control_and_curves(built):
    page, *_ = built
    assert "τ = 0.45" in page.text
    assert "0.80 ± 0.10" in page.text
    curves = [a for a in page.all("img") if a["alt"].startswith("P(trusted)")]
    assert {a["alt"].split(": ")[1] for a in curves} >= {"every level", "never"}
    (whole,) = [a for a in page.all("img") if "mean curve of a source" in a["alt"]]
    assert "all: " in whole["alt"]


def test_without_truth_and_classifier_their_sections_are_left_out(root, made):
    inputs = made.model_copy(update={"truth": None, "classifier_id": None})
    page, figures = read(build_report(root, inputs))
    assert "Against the truth" not in page.text
    assert "The noise classifier" not in page.text
    assert "truth" not in figures


def test_an_arm_without_held_out_loss_is_named_and_left_out(root, made):
    (root.runs / ARMS["everything"] / "heldout.json").unlink()
    page, figures = read(build_report(root, made))
    assert "“Everything” has no held-out loss" in page.text
    assert figures["not_evaluated"] == ["everything"]
    assert figures["ranking"] == ["annotated", "only_reference"]


def test_the_baseline_arm_may_be_absent(root, made):
    arms = {"annotated": ARMS["annotated"]}
    page, figures = read(build_report(root, made.model_copy(update={"arms": arms})))
    assert figures["best"] == "annotated"
    assert "Only “annotated” was evaluated" in page.text


def test_without_arms_the_pool_alone_is_shown(root, made):
    page, figures = read(build_report(root, made.model_copy(update={"arms": {}})))
    assert "No model was evaluated yet" in page.text
    assert "headline" not in figures
    assert "Usable at every noise level" in page.text


def test_arms_that_saw_different_images_are_not_compared(root, made):
    keep_heldout(root.runs / ARMS["annotated"], held_out(0.0, rows_from=7))
    with pytest.raises(BadInput, match="evaluated on different images"):
        build_report(root, made)


def test_the_deviation_of_the_data_is_that_of_the_evaluation(root, made):
    for run_id in ARMS.values():
        loss = held_out(0.0).model_copy(update={"sigma_data": 0.913})
        keep_heldout(root.runs / run_id, loss)
    page = Page(build_report(root, made).read_text())
    assert "(σ data) 0.913" in page.text
    keep_heldout(root.runs / ARMS["annotated"], held_out(0.0))
    with pytest.raises(BadInput, match="images, levels or scales"):
        build_report(root, made)


def test_what_is_missing_is_named(root, made):
    arms = {**ARMS, "fourth": "no-such-run"}
    with pytest.raises(BadInput, match="arm fourth has no training run no-such-run"):
        build_report(root, made.model_copy(update={"arms": arms}))
    with pytest.raises(AnnotationMissing, match="60 of 60 samples"):
        build_report(root, made.model_copy(update={"main_policy_id": "other"}))
    with pytest.raises(TableMissing, match="no noise classifier c9"):
        build_report(root, made.model_copy(update={"classifier_id": "c9"}))
    write_json(root.path / "truth.txt", [])
    for wrong, said in (("nowhere", "no such truth file"), ("truth.txt", "is no Parquet file")):
        with pytest.raises(BadInput, match=said):
            build_report(root, made.model_copy(update={"truth": root.path / wrong}))


def test_the_same_root_gives_the_same_bytes(root, made):
    first = build_report(root, made).read_bytes()
    assert build_report(root, made).read_bytes() == first

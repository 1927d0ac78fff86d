"""What others measured enters under versions of its own; what does not fit is told, never lost."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from pipelines import policies
from pipelines.__main__ import main
from pipelines.freezing import freeze_quality_rank
from pipelines.imports import ImportedFile, import_embeddings, import_levels, import_scores
from pipelines.imports.files import pixel_hash
from pipelines.imports.matching import _last_part
from pipelines.ingest import IngestConfig, ingest
from pipelines.jobs.annotate import annotate
from pipelines.jobs.ood import OodConfig
from pipelines.measures import read_scores
from schemas.errors import BadInput, ContractViolation

SPACE = "pixel:32x32:lanczos:center:pm1"
QUIET = IngestConfig(show_progress=False)


@pytest.fixture
def filled(root, tmp_path, images):
    """Six images, one of them in two folders under one name, ingested from a folder."""
    source = tmp_path / "source"
    pictures = images(6)
    for number, image in enumerate(pictures[:4]):
        path = source / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (source / "b").mkdir()
    Image.fromarray(pictures[4]).save(source / "b" / "0.png")
    Image.fromarray(pictures[5]).save(source / "b" / "five.png")
    Image.fromarray(pictures[5]).save(source / "b" / "copy-of-five.png")
    ingest(root, "b1", source, QUIET)
    return root


def ids(root):
    return root.tables.read("samples", ["sample_id"])["sample_id"].to_pylist()


def row_of(root, key):
    found = root.tables.read("ingest_attempts", where={"attempt_key": key}).to_pylist()
    return found[0]["sample_row"]


def csv(tmp_path, text, name="scores.csv"):
    path = tmp_path / name
    path.write_text(text)
    return ImportedFile(path)


def scores_of(root, version):
    return read_scores(root, "b1", "external", "score", version).values.tolist()


def version_in(report):
    return report.notes[1].split()[-1]


def test_scores_by_sample_id_become_a_version_of_their_own(filled, tmp_path):
    lines = [f"{i},{n / 8}" for n, i in enumerate(ids(filled))]
    file = csv(tmp_path, "sample_id,mos\n" + "\n".join(lines))
    report = import_scores(filled, "b1", file)
    version = version_in(report)
    assert version.startswith("mos-")
    assert (report.written, report.rejected) == (6, {})
    assert scores_of(filled, version) == [n / 8 for n in range(6)]
    again = import_scores(filled, "b1", file)
    assert (again.written, again.unchanged) == (0, 6)
    other = import_scores(filled, "b1", csv(tmp_path, file.path.read_text() + "\n"))
    assert version_in(other) != version


def test_a_policy_ranks_by_an_imported_score(filled, tmp_path):
    lines = [f"{i},{n}" for n, i in enumerate(ids(filled))]
    report = import_scores(filled, "b1", csv(tmp_path, "sample_id,mos\n" + "\n".join(lines)))
    given = {"column": "score", "pack": "external", "good_fraction": 0.5, "noise_space": SPACE}
    with pytest.raises(BadInput, match="say whether it is higher_is_better"):
        freeze_quality_rank(filled, ["b1"], sigma_min_rest=2.0, **given)
    policy = freeze_quality_rank(
        filled, ["b1"], sigma_min_rest=2.0, direction="higher_is_better", **given
    )
    assert policy.scorer_version == version_in(report)
    annotate(filled, "b1", policy)
    levels = filled.tables.read("noise_annotations", ["sigma_min"])["sigma_min"].to_pylist()
    assert levels == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


def test_keys_may_be_paths_or_names_and_a_name_of_two_images_is_not_guessed(filled, tmp_path):
    text = "file_name,q\na/0.png,1\n3.png,2\n0.png,3\nnowhere.png,4\ncopy-of-five.png,5\n"
    report = import_scores(filled, "b1", csv(tmp_path, text))
    assert report.rejected == {"unknown_key": 1, "ambiguous_name": 1}
    assert "3 of 6 samples stand in the file, 3 do not" in report.notes[0]
    rows = filled.tables.read("scores/external").to_pylist()
    had = {row["sample_row"]: row["score"] for row in rows if row["score"] is not None}
    wanted = {"a/0.png": 1, "a/3.png": 2, "b/five.png": 5}
    assert had == {row_of(filled, key): value for key, value in wanted.items()}
    nulls = {row["unscored_reason"] for row in rows if row["score"] is None}
    assert nulls == {"score: not in the file"}


def test_keys_may_be_addresses(filled, tmp_path):
    uri = filled.tables.read("ingest_attempts", ["source_uri"])["source_uri"].to_pylist()[0]
    report = import_scores(filled, "b1", csv(tmp_path, f"url\tq\n{uri}\t0.5\n", "scores.tsv"))
    assert "1 of 6 samples" in report.notes[0]


def test_what_is_no_number_is_null_with_a_reason_and_counted(filled, tmp_path):
    values = ["nan", "inf", "", "1"]
    lines = [f"{i},{v}" for i, v in zip(ids(filled), values, strict=False)]
    report = import_scores(filled, "b1", csv(tmp_path, "sample_id,q\n" + "\n".join(lines)))
    assert report.rejected == {"not_finite": 2}
    rows = filled.tables.read("scores/external").to_pylist()
    assert [row["score"] for row in rows] == [None, None, None, 1.0, None, None]
    said = [row["unscored_reason"] for row in rows]
    assert said[:4] == [
        "score: not finite in the file",
        "score: not finite in the file",
        "score: null in the file",
        None,
    ]


def test_rows_of_one_image_are_one_where_they_agree_and_refused_where_not(filled, tmp_path):
    first = ids(filled)[0]
    same = csv(tmp_path, f"sample_id,q\n{first},1\n{first},1\n")
    assert import_scores(filled, "b1", same).rejected == {"repeated": 1}
    other = csv(tmp_path, f"sample_id,q\n{first},1\n{first},2\n")
    with pytest.raises(BadInput, match=r"rows 1 and 2 are of one image .* differ in 'q'"):
        import_scores(filled, "b1", other)
    # Two names of the same bytes are one image too.
    names = csv(tmp_path, "file_name,q\nfive.png,1\ncopy-of-five.png,2\n")
    with pytest.raises(BadInput, match="are of one image"):
        import_scores(filled, "b1", names)


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("sample_id,q\n" + "0" * 64 + ",1\n", (), "no row of .* fits a sample of b1"),
        ("sample_id,q\n" + "0" * 64 + ",1\n", ("r",), r"\['r'\] are not among them"),
        ("q\n1\n", (), "no key column"),
        ("sample_id,q\n", (), "no rows"),
        ("", (), "cannot be read"),
        ("sample_id,q,q\na,1,1\n", (), "stands twice"),
        ("sample_id,q\na,high\n", ("q",), "no row|no numbers"),
    ],
)
def test_files_that_cannot_be_used_say_why(filled, tmp_path, text, columns, said):
    with pytest.raises(BadInput, match=said):
        import_scores(filled, "b1", csv(tmp_path, text), columns)
    assert not filled.tables.exists("scores/external")


def test_words_where_numbers_should_be_are_refused(filled, tmp_path):
    file = csv(tmp_path, f"sample_id,q\n{ids(filled)[0]},high\n")
    with pytest.raises(BadInput, match="'q' holds no numbers"):
        import_scores(filled, "b1", file, ["q"])


def test_a_pickle_is_not_opened(filled, tmp_path):
    with pytest.raises(BadInput, match="pickle, which runs code"):
        import_scores(filled, "b1", csv(tmp_path, "", "scores.pkl"))


def test_a_missing_file_and_a_name_that_is_none_are_one_line(filled, tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        import_scores(filled, "b1", ImportedFile(tmp_path / "nothing.csv"))
    with pytest.raises(BadInput, match="cannot name a measure"):
        import_scores(filled, "b1", csv(tmp_path, f"sample_id,q\n{ids(filled)[0]},1\n"), name="a b")


def published(tmp_path, images, **changes):
    count = len(images)
    hashes = [np.frombuffer(bytes.fromhex(pixel_hash(i)), np.int64) for i in images]
    tensors = {"CLIP-IQA": np.linspace(0, 1, count, dtype=np.float32)[:, None]}
    tensors["CLIP-IQA-256"] = np.linspace(1, 0, count, dtype=np.float32)
    tensors["hash"] = np.concatenate(hashes)
    path = tmp_path / "quality.safetensors"
    save_file({n: t for n, t in (tensors | changes).items() if t is not None}, path)
    return ImportedFile(path)


def test_the_published_clip_iqa_file_is_matched_by_pixels(spark, filled, tmp_path, images):
    report = import_scores(filled, "b1", published(tmp_path, images(6)[:5]), pack="clip")
    assert "5 of 6 samples" in report.notes[0]
    rows = filled.tables.read("scores/clip").to_pylist()
    by_key = {row_of(filled, f"a/{n}.png"): n / 4 for n in range(4)} | {
        row_of(filled, "b/0.png"): 1.0
    }
    for row in rows:
        wanted = by_key.get(row["sample_row"])
        assert row["clip_iqa"] == wanted
        assert row["clip_iqa_256"] == (None if wanted is None else 1 - wanted)
        assert row["aesthetic"] is None
        assert set(json.loads(row["scorer_versions"])) == {"clip_iqa", "clip_iqa_256"}
        assert "aesthetic: not imported" in row["unscored_reason"]
    policy = freeze_quality_rank(
        filled, ["b1"], column="clip_iqa_256", pack="clip", good_fraction=0.2,
        sigma_min_rest=0.2, noise_space=SPACE,
    )  # fmt: skip
    assert policy.scorer_version == version_in(report)


def test_without_hashes_rows_are_taken_by_the_order_of_names_if_there_are_as_many(
    filled, tmp_path, images
):
    keys = sorted(filled.tables.read("ingest_attempts", ["attempt_key"])["attempt_key"].to_pylist())
    with pytest.raises(BadInput, match="6 rows without names, b1 lists 7 items"):
        import_scores(filled, "b1", published(tmp_path, images(6), hash=None), pack="clip")
    seven = published(tmp_path, images(7), hash=None)
    # Two of the seven are one image, of which the file says two things.
    with pytest.raises(BadInput, match="are of one image"):
        import_scores(filled, "b1", seven, pack="clip")
    same = np.arange(7, dtype=np.float32) / 8
    same[keys.index("b/five.png")] = same[keys.index("b/copy-of-five.png")]
    file = published(tmp_path, images(7), hash=None, **{"CLIP-IQA": same, "CLIP-IQA-256": None})
    report = import_scores(filled, "b1", file, pack="clip")
    assert report.rejected == {"repeated": 1}
    rows = filled.tables.read("scores/clip").to_pylist()
    found = {row["sample_row"]: row["clip_iqa"] for row in rows}
    assert found == {row_of(filled, key): float(same[n]) for n, key in enumerate(keys)}


def test_a_score_outside_its_columns_range_writes_nothing(filled, tmp_path):
    file = csv(tmp_path, f"sample_id,clip_iqa\n{ids(filled)[0]},1.5\n")
    with pytest.raises(ContractViolation, match="clip_iqa > 1"):
        import_scores(filled, "b1", file, pack="clip")
    other = csv(tmp_path, f"sample_id,q\n{ids(filled)[0]},1\n")
    with pytest.raises(BadInput, match="none of clip"):
        import_scores(filled, "b1", other, ["q"], pack="clip")


def test_levels_become_an_external_policy_that_annotates_like_any_other(filled, tmp_path):
    lines = [f"{i},{v}" for i, v in zip(ids(filled), ["0", "1.5", "", "0.25"], strict=False)]
    file = csv(tmp_path, "sample_id,sigma_min\n" + "\n".join(lines))
    report = import_levels(filled, "b1", file, noise_space=SPACE, name="theirs")
    assert (report.written, report.rejected) == (6, {"unscored": 3})
    rows = filled.tables.read("noise_annotations").to_pylist()
    assert [row["sigma_min"] for row in rows] == [0, 1.5, None, 0.25, None, None]
    reasons = ["external", "external", "unscored", "external", "unscored", "unscored"]
    assert [row["reason"] for row in rows] == reasons
    [policy_id] = {row["policy_id"] for row in rows}
    policy = policies.load(filled, policy_id)
    assert (policy.kind, policy.name) == ("external", "theirs")
    assert annotate(filled, "b1", policy).unchanged == 6
    again = import_levels(filled, "b1", file, noise_space=SPACE, name="theirs")
    assert (again.written, again.unchanged) == (0, 6)


def test_windows_come_with_levels(filled, tmp_path):
    lines = [f"{i},3,{v}" for i, v in zip(ids(filled), ["0.5", ""], strict=False)]
    file = csv(tmp_path, "sample_id,sigma_min,sigma_max\n" + "\n".join(lines))
    import_levels(filled, "b1", file, noise_space=SPACE)
    rows = filled.tables.read("noise_annotations").to_pylist()
    assert [row["sigma_max"] for row in rows] == [0.5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("level", ["-0.1", "nan", "inf"])
def test_a_level_that_is_none_is_refused_with_its_row(filled, tmp_path, level):
    lines = f"{ids(filled)[1]},1\n{ids(filled)[0]},{level}\n"
    file = csv(tmp_path, "sample_id,sigma_min\n" + lines)
    with pytest.raises(BadInput, match="in row 2"):
        import_levels(filled, "b1", file, noise_space=SPACE)
    assert not filled.tables.exists("noise_annotations")


def parquet(tmp_path, sample_ids, vectors):
    path = tmp_path / "vectors.parquet"
    pq.write_table(pa.table({"sample_id": sample_ids, "embedding": vectors}), path)
    return ImportedFile(path)


def test_vectors_become_an_encoder_version_that_ood_can_name(filled, tmp_path):
    vectors = np.eye(6, 8, dtype=np.float32).tolist()
    report = import_embeddings(filled, "b1", parquet(tmp_path, ids(filled), vectors), name="dino")
    version = version_in(report)
    where = {"encoder_version": version, "ingest_batch": "b1"}
    stored = filled.tables.open("embeddings").read(["embedding"], where)
    assert stored["embedding"].to_pylist() == vectors
    config = OodConfig.model_validate({"encoder": {"imported": version}})
    assert config.encoder.encoder_version == version


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ([[1.0], [2.0, 3.0]] + [[1.0]] * 4, "lengths"),
        ([[float("nan")]] + [[1.0]] * 5, "not finite, first row 1"),
        ([1.0] * 6, "not a list"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(filled, tmp_path, vectors, said):
    with pytest.raises(BadInput, match=said):
        import_embeddings(filled, "b1", parquet(tmp_path, ids(filled), vectors), name="dino")


def test_a_sample_without_a_vector_is_named(filled, tmp_path):
    file = parquet(tmp_path, ids(filled)[:5], [[1.0]] * 5)
    with pytest.raises(BadInput, match=r"5 of 6 samples stand in the file.*needs a vector"):
        import_embeddings(filled, "b1", file, name="dino")


def test_imports_are_commands(filled, tmp_path, capsys):
    lines = "\n".join(f"{i},{n},1.0" for n, i in enumerate(ids(filled)))
    path = csv(tmp_path, "sample_id,mos,sigma_min\n" + lines).path
    where = ["--root", str(filled.path), "--batch", "b1", "--file", str(path)]
    assert main(["import-scores", *where, "--column", "mos", "--dry-run"]) == 0
    assert "would do 6 of 6" in capsys.readouterr().out
    assert main(["import-scores", *where, "--column", "mos"]) == 0
    assert "import-scores b1: read 6, written 6" in capsys.readouterr().out
    assert main(["import-levels", *where, "--noise-space", SPACE]) == 0
    assert "policy external-" in capsys.readouterr().out
    assert main(["import-levels", *where, "--noise-space", SPACE, "--sigma-min", "no"]) == 2
    assert "has no column 'no'" in capsys.readouterr().err


@given(st.text(alphabet="ab/#.", min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_the_last_part_of_a_key_has_no_separator(key):
    assert not set("/#") & set(_last_part(key))
    assert key.endswith(_last_part(key))

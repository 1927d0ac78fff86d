import pytest
from PIL import Image

from pipelines.__main__ import main

RANK = """
kind: quality_rank
column: sharpness
good_fraction: 0.5
sigma_min_rest: 1.5
noise_space: pixel:32x32:lanczos:center:pm1
"""


@pytest.fixture
def folder(tmp_path, images):
    source = tmp_path / "source"
    source.mkdir()
    for number, image in enumerate(images(6)):
        Image.fromarray(image).save(source / f"{number}.png")
    return source


def run(capsys, *words):
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_batch_goes_from_a_folder_to_levels_by_command(spark, tmp_path, folder, capsys):
    where = ("--root", tmp_path / "root", "--batch", "b1")
    (tmp_path / "score.yaml").write_text("encoder: {resolution: 32}\n")
    (tmp_path / "policy.yaml").write_text(RANK)
    commands = [
        ("ingest", *where, "--source", folder),
        ("score", *where, "--config", tmp_path / "score.yaml"),
        ("pack", *where),
        ("annotate", *where, "--policy", tmp_path / "policy.yaml"),
    ]
    for command in commands:
        code, out, err = run(capsys, *command)
        assert code == 0, err
        assert f"{command[0]} b1: read 6, written 6, unchanged 0" in out
    for command in commands:
        code, out, _ = run(capsys, *command)
        assert (code, "written 0, unchanged 6" in out) == (0, True)


def test_a_batch_takes_another_sources_images_only_when_told_to(tmp_path, folder, images, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for number, image in enumerate(images(2, seed=9)):
        Image.fromarray(image).save(other / f"{number}.png")
    where = ("--root", tmp_path / "root", "--batch", "b1")
    assert run(capsys, "ingest", *where, "--source", folder)[0] == 0
    code, _, err = run(capsys, "ingest", *where, "--source", other)
    assert code == 2
    assert f"batch b1 holds the images of {folder}, not of {other}" in err
    assert (
        "read 2, written 2"
        in run(capsys, "ingest", *where, "--source", other, "--replace-source")[1]
    )


def test_a_dry_run_of_what_is_not_there_is_refused_and_one_of_an_ingest_says_what_it_is(
    root, folder, capsys
):
    code, out, _ = run(
        capsys, "ingest", "--root", root.path, "--batch", "b", "--source", folder, "--dry-run"
    )
    assert (code, out.count("\n")) == (0, 1)
    assert f"{folder} is a folder" in out
    code, _, err = run(capsys, "references", "--root", root.path, "--batch", "b", "--dry-run")
    assert (code, "there is no batch 'b'" in err) == (2, True)


def test_a_retention_below_nothing_is_refused(root, make_batch, images, capsys):
    make_batch(root, "b1", images(2))
    code, _, err = run(capsys, "vacuum", "--root", root.path, "--retention-hours", "-5")
    assert (code, "in the future" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [("a/b", True, "batch name 'a/b' cannot be used"), ("b1", False, "/none")],
)
def test_an_ingest_that_cannot_be_leaves_no_root_behind(
    tmp_path, folder, capsys, name, there, said
):
    source = folder if there else tmp_path / "none"
    where = ("--root", tmp_path / "root", "--batch", name)
    code, _, err = run(capsys, "ingest", *where, "--source", source)
    assert code == 2
    assert said in err
    assert not (tmp_path / "root").exists()


def test_a_dry_run_says_how_much_there_is_to_do(spark, tmp_path, folder, capsys):
    where = ("--root", tmp_path / "root", "--batch", "b1")
    run(capsys, "ingest", *where, "--source", folder)
    code, out, _ = run(capsys, "score", *where, "--dry-run")
    assert code == 0
    assert out.startswith("score b1: would do 6 of 6, the rest is current; about ")
    assert out.endswith("ms an image, timed on 6)\n")
    code, out, _ = run(capsys, "rescore", *where[:2], "--dry-run")
    assert (code, out[:33]) == (0, "rescore: would do 6 of 6, the res")
    assert "b1: about " in out
    assert not (tmp_path / "root" / "tables" / "scores").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score",), "b1' has no samples; run ingest"),
        (("ood",), "b1' has no samples; run ingest"),
        (("pack",), "b1' has no samples; run ingest"),
        (("annotate", "--policy-id", "x"), "no policy 'x' is registered"),
        (("annotate", "--policy", "/nowhere.yaml"), "cannot read the policy /nowhere.yaml"),
        (("score", "--config", "/nowhere.yaml"), "cannot read the config /nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_two(root, capsys, words, said):
    code, out, err = run(capsys, *words, "--root", root.path, "--batch", "b1")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must be a mapping"),
        ("kind: nonsense\n", "there is no kind 'nonsense'; there are classifier_threshold, "),
        ("name: n\n", "a kind is needed; there are classifier_threshold, "),
        ("kind: fixed_per_source\nnoise_space: s\nlevels: {web: -1}\n", "no sigma"),
        ("kind: quality_rank\ncolumn: sharpness\n", "missing"),
        (RANK.replace("sharpness", "sharpnes"), "has no score 'sharpnes'; did you mean sharpness?"),
        (RANK + "good_fraction: 1.5\n", "p.yaml: good_fraction: Input should be less than"),
        (RANK + "good_fraction: half\n", "p.yaml: good_fraction: Input should be a valid number"),
        (RANK + "column: [sharpness]\n", "p.yaml: column: Input should be a valid string"),
        ("kind: classifier_threshold\n", "classifier_id: the id of a noise classifier is needed"),
        ("kind: fixed_per_source\nnoise_space: s\nlevels: {1: 0.5}\n", "put it in quotes"),
        ("kind: fixed_per_source\nnoise_space: s\nlevels: [1]\n", "levels: it must be a mapping"),
        (RANK, "share no version of scores/classical; run score on them"),
        ("kind: classifier_threshold\nclassifier_id: c9\n", "no noise classifier 'c9'"),
    ],
)
def test_a_policy_that_cannot_be_used_says_why(
    root, make_batch, images, tmp_path, capsys, text, said
):
    make_batch(root, "b1", images(2))
    (tmp_path / "p.yaml").write_text(text)
    words = ("annotate", "--root", root.path, "--batch", "b1", "--policy", tmp_path / "p.yaml")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_help_names_every_job(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for job in ("ingest", "references", "score", "ood", "pack", "curves", "annotate"):
        assert job in out

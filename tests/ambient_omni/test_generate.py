import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ambient_omni.generation import job as generate_job
from ambient_omni.generation.config import GenerateJob, SampleConfig
from ambient_omni.generation.grids import save_grid
from ambient_omni.generation.job import generate
from ambient_omni.generation.outputs import Folder, Tar
from ambient_omni.generation.sharing import share
from ambient_omni.training.trainer import train
from schemas.errors import BadInput


@pytest.fixture
def run(trainable, config):
    run_id = train(trainable, config(num_images=8), show=False)

    def make(out, count=3, **changes):
        samples = {"num_images": count, "num_steps": 2, **changes.pop("samples", {})}
        job = GenerateJob(run_id=run_id, out=out, samples=SampleConfig(**samples), **changes)
        return generate(trainable, job, show=False)

    make.run_id = run_id
    return make


def pngs(folder):
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def members(folder):
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    return found


def test_generate_writes_images_a_grid_and_their_parents(run, tmp_path):
    assert run(tmp_path / "out") == 3
    names = ["000000.png", "000001.png", "000002.png", "grid.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    said = json.loads((tmp_path / "out" / "generate.json").read_text())
    assert said["policy_id"] == "policy"
    assert said["sampler"]["num_steps"] == 2
    assert Image.open(tmp_path / "out" / "000000.png").size == (8, 8)
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == names[:3]


def test_images_that_are_there_are_kept_and_more_are_added(run, tmp_path, monkeypatch):
    run(tmp_path / "whole", 5)
    run(tmp_path / "out", 5)
    (tmp_path / "out" / "000001.png").unlink()
    (tmp_path / "out" / "000003.png").unlink()
    made = []
    ordinary = Folder.write
    monkeypatch.setattr(
        Folder, "write", lambda self, numbers, *rest: made.extend(numbers) or
        ordinary(self, numbers, *rest),
    )  # fmt: skip
    assert run(tmp_path / "out", 7) == 7
    assert made == [1, 3, 5, 6]
    whole, out = pngs(tmp_path / "whole"), pngs(tmp_path / "out")
    assert len(out) == 7
    assert all(out[name] == whole[name] for name in whole)


def test_shards_hold_what_the_folder_holds(run, tmp_path):
    run(tmp_path / "folder", 5)
    assert run(tmp_path / "tars", 5, format="tar", images_per_shard=2) == 5
    shards = members(tmp_path / "tars")
    assert {name: len(held) for name, held in shards.items()} == {
        "000000.tar": 4, "000001.tar": 4, "000002.tar": 2,
    }  # fmt: skip
    held = {name: content for shard in shards.values() for name, content in shard.items()}
    for number in range(5):
        image = np.asarray(Image.open(io.BytesIO(held[f"{number:08d}.png"])))
        same = np.asarray(Image.open(tmp_path / "folder" / f"{number:06d}.png"))
        assert np.array_equal(image, same)
        assert json.loads(held[f"{number:08d}.json"])["number"] == number


@pytest.mark.slow
@pytest.mark.parametrize("format", ["folder", "tar"])
def test_processes_that_share_the_images_make_those_of_one_process(
    trainable, run, launcher, tmp_path, format
):
    shape = {"format": format, "images_per_shard": 3, "batch_size": 2}
    run(tmp_path / "one", 9, **shape)
    out = tmp_path / "two"
    job = {"run_id": run.run_id, "out": out, "samples": {"num_images": 9, "num_steps": 2}, **shape}
    # A part is there already.
    run(out, 3, **shape)
    assert launcher.generate(trainable, GenerateJob(**job), 2) == [0, 0]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    # Refused in every process, and nobody waits for the others.
    other = {**job, "samples": {"num_images": 9, "num_steps": 3}}
    assert launcher.generate(trainable, GenerateJob(**other), 2) == [1, 1]


def test_shares_are_whole_batches_or_whole_runs_and_together_are_everything():
    runs = [range(5), range(7, 8), range(10, 16)]
    for size in (None, 2, 3):
        shares = [
            share(runs, size, SimpleNamespace(process_index=rank, num_processes=3))
            for rank in range(3)
        ]
        parts = [part for mine in shares for part in mine]
        assert sorted(n for part in parts for n in part) == [n for run in runs for n in run]
        alone = share(runs, size, SimpleNamespace(process_index=0, num_processes=1))
        assert sorted(parts, key=lambda part: part.start) == alone
        assert (alone == runs) is (size is None)


def test_shards_that_are_whole_are_kept_and_the_others_made_again(run, tmp_path, monkeypatch):
    run(tmp_path / "out", 5, format="tar", images_per_shard=2)
    whole = members(tmp_path / "out")
    (tmp_path / "out" / "000000.tar").unlink()
    cut = (tmp_path / "out" / "000001.tar").read_bytes()[:700]
    (tmp_path / "out" / "000001.tar").write_bytes(cut)
    made = []
    ordinary = Tar.write
    monkeypatch.setattr(
        Tar, "write", lambda self, numbers, *rest: made.append(numbers) or
        ordinary(self, numbers, *rest),
    )  # fmt: skip
    assert run(tmp_path / "out", 6, format="tar", images_per_shard=2) == 6
    assert made == [range(2), range(2, 4), range(4, 6)]
    again = members(tmp_path / "out")
    assert again["000000.tar"] == whole["000000.tar"]
    assert again["000001.tar"] == whole["000001.tar"]
    assert set(whole["000002.tar"].items()) <= set(again["000002.tar"].items())


@pytest.mark.parametrize(
    "changes", [{"samples": {"seed": 1}}, {"samples": {"solver": "euler"}}, {"format": "tar"}]
)
def test_other_settings_do_not_mix_with_images_that_are_there(run, tmp_path, changes):
    run(tmp_path / "out")
    before = pngs(tmp_path / "out")
    with pytest.raises(BadInput, match=r"made with another (sampler|format)"):
        run(tmp_path / "out", **changes)
    assert pngs(tmp_path / "out") == before


def test_prompts_come_from_a_file_a_line_each(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n")
    job = GenerateJob(run_id="r", out=tmp_path, prompts_file=file)
    assert generate_job._with_prompts(job).prompts == ("a cat", "a dog")
    file.write_text("\n")
    with pytest.raises(BadInput, match="holds no prompt"):
        generate_job._with_prompts(job)
    with pytest.raises(BadInput, match="cannot read the prompts"):
        generate_job._with_prompts(job.model_copy(update={"prompts_file": tmp_path / "none"}))
    with pytest.raises(ValueError, match="not both"):
        GenerateJob(run_id="r", out=tmp_path, prompts_file=file, samples={"prompts": ("x",)})


@pytest.mark.parametrize(
    "samples", [{"prompts": ["a cat"]}, {"guidance": 2.0}, {"labels": ["cat"]}, {"lowest": 0.001}]
)
def test_a_run_whose_samples_cannot_be_drawn_is_refused_before_it_trains(
    trainable, config, samples
):
    settings = {"num_images": 4, "num_steps": 3, **samples}
    with pytest.raises(BadInput, match=r"asked for|are given|guidance needs"):
        train(trainable, config(samples=settings, prior={"lowest": 0.01}), show=False)
    assert not list(trainable.runs.glob("*/checkpoints"))


def test_an_image_that_is_cut_off_is_made_again(run, tmp_path):
    run(tmp_path / "out", 4)
    whole = pngs(tmp_path / "out")
    (tmp_path / "out" / "000001.png").write_bytes(whole["000001.png"][:-9])
    (tmp_path / "out" / "000002.png").write_bytes(b"")
    run(tmp_path / "out", 4)
    assert pngs(tmp_path / "out") == whole


def test_asking_for_fewer_images_forgets_none(run, tmp_path):
    run(tmp_path / "out", 5)
    before = (tmp_path / "out" / "metadata.jsonl").read_text()
    assert run(tmp_path / "out", 2) == 2
    assert (tmp_path / "out" / "metadata.jsonl").read_text() == before
    assert len(pngs(tmp_path / "out")) == 5


def test_a_folder_of_somebody_else_is_left_alone(run, tmp_path):
    foreign = tmp_path / "photos" / "000000.png"
    foreign.parent.mkdir()
    foreign.write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"holds files and no generate\.json"):
        run(foreign.parent)
    assert [path.name for path in foreign.parent.iterdir()] == ["000000.png"]
    with pytest.raises(BadInput, match="is a file: name a folder"):
        run(foreign)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generate.json").write_text("[]")
    with pytest.raises(BadInput, match="is damaged"):
        run(tmp_path / "out")


def test_prompts_may_begin_with_a_mark_and_hold_any_letter(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffשלום\r\na\u2028b\n".encode())
    job = GenerateJob(run_id="r", out=tmp_path, prompts_file=file)
    assert generate_job._with_prompts(job).prompts == ("שלום", "a\u2028b")


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, "a word " * 200_000, "one\ntwo\n" * 1000, "שלום"]
)
def test_any_prompt_fits_below_its_image(tmp_path, text):
    save_grid(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "grid.png", captions=[text])
    assert Image.open(tmp_path / "grid.png").size == (32, 44)


def test_only_small_images_are_enlarged(tmp_path):
    save_grid(np.zeros((2, 256, 256, 3), np.uint8), tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (514, 256)


def test_guidance_away_from_what_was_never_learned_is_refused(config):
    told = config(condition={"kind": "label", "dropout": 0.0})
    with pytest.raises(BadInput, match=r"condition\.dropout 0"):
        told.require_guidable(SampleConfig(guidance=2.0))
    told.require_guidable(SampleConfig())
    config(condition={"kind": "label"}).require_guidable(SampleConfig(guidance=2.0))

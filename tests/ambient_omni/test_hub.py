import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from ambient_omni.hub import find_part, read_json, weights_sha256
from schemas.errors import BadInput


def repository(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a pipeline and an autoencoder by itself; it filters files as the real one does."""
    repository(
        tmp_path / "hub" / "them" / "pipeline",
        "vae/config.json", "vae/model.safetensors", "vae/model.fp16.safetensors", "vae/model.bin",
        "model_index.json", "unet/config.json", "all-in-one.safetensors",
    )  # fmt: skip
    repository(tmp_path / "hub" / "them" / "vae", "config.json", "model.safetensors", "old/a.json")

    def snapshot_download(name, revision, allow_patterns, ignore_patterns):
        home, cache = tmp_path / "hub" / name, tmp_path / "cache" / name
        if not home.is_dir():
            raise OSError("no such repository")
        files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        cache.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(home / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return tmp_path / "cache"


def downloaded(hub):
    return sorted(str(path.relative_to(hub)) for path in hub.rglob("*") if path.is_file())


def test_of_a_pipeline_on_the_hub_only_the_part_is_downloaded_and_only_once(hub):
    assert find_part("them/pipeline", "vae") == hub / "them" / "pipeline" / "vae"
    assert downloaded(hub / "them" / "pipeline") == [
        "model_index.json",
        "vae/config.json",
        "vae/model.safetensors",
    ]


def test_a_part_by_itself_is_found_on_the_hub(hub):
    assert find_part("them/vae", "vae") == hub / "them" / "vae"
    assert downloaded(hub) == ["them/vae/config.json", "them/vae/model.safetensors"]


def test_a_folder_is_a_pipeline_or_the_part_by_itself(tmp_path):
    pipeline = repository(tmp_path / "pipeline", "vae/config.json")
    assert find_part(str(pipeline), "vae") == pipeline / "vae"
    assert find_part(str(pipeline / "vae"), "vae") == pipeline / "vae"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "one", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name):
    with pytest.raises(BadInput, match="there is no folder"):
        find_part(name, "vae")


def test_what_the_hub_does_not_have_is_said(hub):
    with pytest.raises(
        BadInput, match=r"no such model or cannot be reached \(no such repository\)"
    ):
        find_part("them/nothing", "vae")


def test_the_hash_sees_names_types_shapes_and_numbers_and_nothing_else(tmp_path):
    def saved(name, tensors, **metadata):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata or None)
        return weights_sha256(folder)

    plain = {"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    base = saved("base", plain)
    assert saved("again", dict(reversed(plain.items())), author="them") == base
    others = [
        {**plain, "a": torch.zeros(3, 2)},
        {**plain, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**plain, "a": torch.full((2, 3), 1e-30)},
        {"a": plain["a"], "c": plain["b"]},
    ]
    found = {saved(f"other{number}", other) for number, other in enumerate(others)}
    assert len(found | {base}) == 5


def test_damaged_configs_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="missing or damaged"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="no model's config"):
        read_json(tmp_path / "config.json")


def test_weights_that_are_cut_off_or_were_never_fetched_are_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    whole = file.read_bytes()
    for content in (whole[:-4], b"version https://git-lfs.github.com/spec/v1\n", b""):
        file.write_bytes(content)
        with pytest.raises(BadInput, match="are damaged"):
            weights_sha256(tmp_path)

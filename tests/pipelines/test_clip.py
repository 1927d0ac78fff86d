import hashlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_omni import rng
from pipelines.jobs.score import ScoreConfig, score
from pipelines.scorers.clip import QUALITY, WATERMARK, clip_pack, first_of_pair, patches_of
from pipelines.scorers.clip_network import ClipConfig
from pipelines.scorers.images import Images
from schemas.errors import BadInput
from tests.data.tiny_clip import MEAN, SIDE, STD, WIDTH, save_tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "linear.pth"
    weight = torch.from_numpy(rng.normal((1, WIDTH), 0, "test-head")).float()
    torch.save({"weight": weight, "bias": torch.tensor([5.0])}, path)
    return path


@pytest.fixture(scope="module")
def network(folder):
    """open_clip's own road to the network and its tokenizer."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def image_vector(network, view):
    """By hand: one (32, 32, 3) view."""
    x = (view / 255 - np.array(MEAN)) / np.array(STD)
    tensor = torch.from_numpy(x.transpose(2, 0, 1)[None]).float()
    with torch.inference_mode():
        return unit(network[0].encode_image(tensor).numpy()[0])


def text_vector(network, text):
    with torch.inference_mode():
        return unit(network[0].encode_text(network[1]([text])).numpy()[0])


def by_hand(network, vector, prompts):
    """Softmax over the pair, as the paper writes it."""
    scale = float(network[0].logit_scale.exp())
    good, bad = (np.exp(scale * vector @ text_vector(network, p)) for p in prompts)
    return good / (good + bad)


def noise(*shape, seed=0):
    return rng.generator(seed, "test-clip").integers(0, 256, (*shape, 3), dtype=np.uint8)


def config(folder, **more):
    return ClipConfig(model=str(folder), **more)


def test_quality_and_watermark_are_the_softmax_of_their_pairs(folder, network):
    images = [noise(SIDE, SIDE, seed=n) for n in range(3)]
    found = clip_pack(config(folder)).score(images).columns
    for n, image in enumerate(images):
        vector = image_vector(network, image)
        assert found["clip_iqa"][n] == pytest.approx(by_hand(network, vector, QUALITY), abs=1e-5)
        expected = by_hand(network, vector, WATERMARK)
        assert found["watermark"][n] == pytest.approx(expected, abs=1e-5)


def test_a_pair_of_prompts_is_the_logistic_function_of_their_difference_without_overflow():
    pair = np.array([[1.0, 0.0], [0.0, 1.0]])
    features = np.array([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    expected = 1 / (1 + np.exp(-10 * np.array([-0.2, 1.0, -1.0])))
    assert first_of_pair(features, pair, 10.0) == pytest.approx(expected)
    assert first_of_pair(features, pair, 1e6).tolist() == [0.0, 1.0, 0.0]


def test_patches_are_the_mean_over_a_grid_of_whole_ones(folder, network):
    image = noise(70, 100)
    pack = clip_pack(config(folder, patch_sides=(32, 64)))
    found = pack.score([image]).columns
    grid = [image[t : t + 32, x : x + 32] for t in (0, 32) for x in (0, 32, 64)]
    vectors = [image_vector(network, patch) for patch in grid]
    expected = np.mean([by_hand(network, vector, QUALITY) for vector in vectors])
    assert found["clip_iqa_32"] == pytest.approx([expected], abs=1e-5)
    [patch] = patches_of(image, 64)
    view = Image.fromarray(patch).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    expected = by_hand(network, image_vector(network, np.asarray(view)), QUALITY)
    assert found["clip_iqa_64"] == pytest.approx([expected], abs=1e-5)


def test_patches_that_do_not_fit_or_were_not_asked_for_are_null_with_the_reason(folder):
    pack = clip_pack(config(folder, patch_sides=(128,)))
    found = pack.score([noise(40, 200)])
    assert found.reasons[0]["clip_iqa_128"] == "shorter side under 128"
    assert found.reasons[0]["clip_iqa_256"] == "skipped, not asked for in clip.patch_sides"
    assert set(pack.skipped) == {
        "clip_iqa_512", "clip_iqa_256", "clip_iqa_64", "clip_iqa_32", "aesthetic",
    }  # fmt: skip


def test_captions_are_compared_by_cosine_and_none_is_null(folder, network):
    images = [noise(SIDE, SIDE, seed=n) for n in range(5)]
    captions = ["a red fox", None, "a house", "  ", "\x00=cmd \u202e<script>" + "x" * 1_000_000]
    found = clip_pack(config(folder)).score(Images(images, captions), ["caption_similarity"])
    for n in (0, 2):
        cosine = image_vector(network, images[n]) @ text_vector(network, captions[n])
        assert found.columns["caption_similarity"][n] == pytest.approx(cosine, abs=1e-5)
    assert [r.get("caption_similarity") for r in found.reasons] == [
        None, "no caption", None, "no caption", None,
    ]  # fmt: skip


def test_the_aesthetic_head_is_linear_on_the_unit_vector(folder, network, head):
    image = noise(SIDE, SIDE)
    pack = clip_pack(config(folder, aesthetic_head=head))
    weight = torch.load(head, weights_only=True)["weight"].numpy()[0]
    expected = image_vector(network, image) @ weight + 5
    assert pack.score([image]).columns["aesthetic"] == pytest.approx([expected], abs=1e-4)


def test_a_head_of_another_network_is_refused_with_both_sizes(folder, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, path)
    pack = clip_pack(config(folder, aesthetic_head=path))
    with pytest.raises(BadInput, match="768 numbers"):
        pack.score([noise(SIDE, SIDE)])


def test_one_forward_serves_all_scorers_of_the_whole_image(folder, head, monkeypatch):
    from pipelines.scorers.clip_network import ClipNetwork

    calls = []
    plain = ClipNetwork.encode_images
    monkeypatch.setattr(
        ClipNetwork, "encode_images", lambda self, v: calls.append(len(v)) or plain(self, v)
    )
    images = Images([noise(50, 60, seed=n) for n in range(4)], ["x"] * 4)
    clip_pack(config(folder, aesthetic_head=head)).score(images)
    assert calls == [4]


def test_scores_do_not_depend_on_neighbours_or_sizes(folder):
    pack = clip_pack(config(folder))
    sizes = [(32, 32), (1, 1), (1, 500), (90, 40), *[(40, 40)] * 40]
    pile = [noise(*size, seed=n) for n, size in enumerate(sizes)]
    together = pack.score(pile).columns["clip_iqa"]
    alone = [pack.score([image]).columns["clip_iqa"][0] for image in pile]
    assert together == pytest.approx(alone, abs=1e-5)
    assert np.all((together >= 0) & (together <= 1))


def test_weights_are_pinned_and_decide_the_version(folder, tmp_path):
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    right = hashlib.sha256(weights).hexdigest()
    same = clip_pack(config(folder, sha256=right)).version
    assert same == clip_pack(config(folder)).version
    with pytest.raises(BadInput, match="pinned is 0000"):
        clip_pack(config(folder, sha256="0" * 64)).version  # noqa: B018
    other = save_tiny_clip(tmp_path / "other", seed=1)
    assert clip_pack(config(other)).version != same


def test_a_network_that_cannot_be_had_skips_the_pack(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pack = clip_pack(ClipConfig(model=str(tmp_path / "nothing")))
    assert len(pack.skipped) == len(pack.scorers)
    assert "is neither a folder with open_clip_config.json" in pack.skipped["clip_iqa"]
    assert pack.score([noise(8, 8)]).reasons[0]["watermark"].startswith("skipped, ")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    without = clip_pack(ClipConfig(model=str(tmp_path / "nowhere")))
    assert "ambient-omni[clip]" in without.skipped["clip_iqa"]


def test_captions_reach_the_job_and_a_head_that_comes_later_is_measured_alone(
    root, make_batch, images, folder, head, monkeypatch
):
    monkeypatch.setattr(
        "pipelines.slices.run_tasks", lambda tasks, work, **_: [work(task) for task in tasks]
    )
    table = make_batch(root, "b1", images(3))
    rows = [
        row | {"caption": c} for row, c in zip(table.to_pylist(), ["a", None, "b"], strict=True)
    ]
    slice_ = {"ingest_batch": "b1"}
    told = table.from_pylist(rows, schema=table.schema)
    root.tables.commit("samples", told, slice=slice_, inputs={"told": 1}, job="tests")
    settings = {"packs": ("clip",), "encoder": None}
    first = score(root, "b1", ScoreConfig(**settings, clip=config(folder)))
    assert first.notes == (
        "clip_iqa_512, clip_iqa_256, clip_iqa_128, clip_iqa_64, clip_iqa_32 of clip skipped: "
        "not asked for in clip.patch_sides",
        "aesthetic of clip skipped: no head is given in clip.aesthetic_head",
    )
    found = root.tables.read("scores/clip").to_pylist()
    assert [row["caption_similarity"] is None for row in found] == [False, True, False]
    second = score(root, "b1", ScoreConfig(**settings, clip=config(folder, aesthetic_head=head)))
    assert second.notes[-1] == (
        "scores/clip: aesthetic measured, clip_iqa, caption_similarity, watermark kept"
    )
    whole = clip_pack(config(folder, aesthetic_head=head))
    where = {"scorer_version": whole.version}
    kept = root.tables.read("scores/clip", where=where).to_pylist()
    assert [r["caption_similarity"] for r in kept] == [r["caption_similarity"] for r in found]
    assert "caption_similarity: no caption" in kept[1]["unscored_reason"]
    expected = whole.score(images(3)).columns["aesthetic"]
    assert [row["aesthetic"] for row in kept] == pytest.approx(expected)

import hashlib
import io
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import demo_data
from pipelines.demo_data import DemoDataConfig, Drawing, build, caption_of, plan
from schemas.errors import BadInput

SVG = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{}</svg>'
APPLE = SVG.format(
    '<g id="color"><rect x="9" y="9" width="50" height="50" fill="#ea5a47"/></g>'
    '<g id="line"><rect x="9" y="9" width="50" height="50" fill="none" stroke="#000"/></g>'
)


def apples(count: int) -> list[Drawing]:
    """Distinct drawings: one square each, of another size and colour."""
    return [
        Drawing(
            f"{0x1F400 + i:X}",
            SVG.format(
                f'<g id="color"><rect x="4" y="4" width="{10 + i % 50}" height="{30 + i // 50}" '
                f'fill="#{(i * 2654435761) % 0x1000000:06x}"/></g><g id="line"><rect x="4" y="4" '
                f'width="{10 + i % 50}" height="{30 + i // 50}" fill="none" stroke="#000"/></g>'
            ),
        )
        for i in range(count)
    ]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo_data, "drawings", lambda: iter(apples(200)))
    return DemoDataConfig(resolution=16)


def files(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_no_base_code_point_stands_in_two_folders():
    entries = plan(list(demo_data.drawings()), DemoDataConfig())
    places = defaultdict(set)
    for entry in entries:
        places[entry.drawing.base].add(entry.folder.split("/")[0])
    assert {len(folders) for folders in places.values()} == {1}


def test_the_shares_are_those_of_the_config():
    config = DemoDataConfig()
    entries = plan(list(demo_data.drawings()), config)
    drawings = sum(e.kind != demo_data.FOREIGN for e in entries)
    folders = Counter(e.folder for e in entries)
    assert folders["reference"] == pytest.approx(config.reference_fraction * drawings, abs=2)
    assert folders["evaluation"] == pytest.approx(config.evaluation_fraction * drawings, abs=2)
    web = [e for e in entries if e.folder == "pool/web"]
    undamaged = sum(e.kind == demo_data.UNDAMAGED for e in web)
    assert undamaged == pytest.approx(config.undamaged_fraction * len(web), abs=1)
    assert folders["pool/lineart"] == pytest.approx(config.foreign_fraction * len(web), abs=1)
    ways = Counter((e.kind, e.severity) for e in web if e.kind != demo_data.UNDAMAGED)
    assert max(ways.values()) - min(ways.values()) <= 1


def test_men_women_and_persons_of_one_profession_share_a_base():
    assert {Drawing(f"{p}-200D-1F373", "").base for p in ("1F468", "1F469", "1F9D1")} == {"1F9D1"}


def test_no_skin_tone_variant_and_no_name_twice_among_the_drawings():
    names = [d.name for d in demo_data.drawings()]
    assert len(names) == len(set(names)) > 2000
    assert not any(tone in name for name in names for tone in demo_data.SKIN_TONES)


def test_building_twice_gives_the_same_bytes_and_the_second_time_nothing_is_drawn(
    tmp_path, small, monkeypatch
):
    first, second = build(tmp_path / "a", small), build(tmp_path / "b", small)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    monkeypatch.setattr(demo_data, "_pixels", lambda *_: pytest.fail("drawn again"))
    assert build(tmp_path / "a", small) == first != second


def test_an_interrupted_build_is_made_anew(tmp_path, small):
    build(tmp_path / "a", small)
    whole = files(tmp_path / "a")
    (tmp_path / "a" / "demo.json").unlink()
    next((tmp_path / "a" / "pool" / "web").glob("*.png")).unlink()
    build(tmp_path / "a", small)
    assert files(tmp_path / "a") == whole


def test_another_config_replaces_what_stands_there(tmp_path, small):
    build(tmp_path, small)
    paths = build(tmp_path, small.model_copy(update={"undamaged_fraction": 1.0}))
    kinds = set(pq.read_table(paths.truth)["kind"].to_pylist())
    assert kinds == {demo_data.UNDAMAGED, demo_data.FOREIGN}


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, small):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"thesis\.txt"):
        build(tmp_path, small)
    assert files(tmp_path).keys() == {"thesis.txt"}


def test_truth_names_every_written_file_once_by_the_hash_of_its_bytes(tmp_path, small):
    paths = build(tmp_path, small)
    truth = pq.read_table(paths.truth)
    assert truth.schema == demo_data.TRUTH_SCHEMA
    written = [
        hashlib.sha256(p.read_bytes()).hexdigest()
        for folder in (paths.reference, paths.pool, paths.evaluation)
        for p in folder.rglob("*.png")
    ]
    assert sorted(truth["sample_id"].to_pylist()) == sorted(written)
    assert len(set(written)) == len(written)


def test_neither_name_nor_format_tells_the_damage(tmp_path, small):
    paths = build(tmp_path, small)
    for path in paths.pool.rglob("*"):
        assert path.is_dir() or path.suffix in (".png", ".txt")
        assert not any(kind in path.name for kind in small.severities)
    formats = {Image.open(p).format for p in paths.pool.rglob("*.png")}
    assert formats == {"PNG"}


def test_line_art_has_no_colour_and_the_drawing_has():
    def saturation(svg: str) -> int:
        image = demo_data.render(svg, 32).astype(int)
        return int((image.max(-1) - image.min(-1)).max())

    assert saturation(APPLE) > 50
    assert saturation(demo_data.line_art_of(APPLE)) == 0
    assert demo_data.render(demo_data.line_art_of(APPLE), 32).min() < 200


def test_captions_are_unicode_names_without_joiners_and_absent_for_private_code_points():
    assert caption_of("1F34E") == "red apple"
    assert caption_of("1F9D1-200D-1F373") == "adult cooking"
    assert caption_of("E000") is None


def test_captions_stand_beside_their_images(tmp_path, small):
    paths = build(tmp_path, small)
    texts = list(paths.pool.rglob("*.txt"))
    assert texts
    assert all(t.with_suffix(".png").exists() and t.read_text().strip() for t in texts)


def test_an_unknown_kind_of_damage_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match="fog"):
        build(tmp_path / "a", DemoDataConfig(severities={"fog": (1.0,)}))
    assert not (tmp_path / "a").exists()


def test_transparent_drawings_come_out_on_white():
    image = demo_data.render(SVG.format(""), 8)
    np.testing.assert_array_equal(image, np.full((8, 8, 3), 255, np.uint8))
    assert demo_data._png(image) == demo_data._png(image)
    assert Image.open(io.BytesIO(demo_data._png(image))).mode == "RGB"

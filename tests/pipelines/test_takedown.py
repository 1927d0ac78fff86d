"""Take-down: found by id, prefix or address; bytes blanked, facts removed, never stored again."""

import datetime

import numpy as np
import pytest

from ambient_omni.data.packs import PackSet
from ambient_omni.data.transforms import Transform
from dagster_project import cli
from pipelines.__main__ import main
from pipelines.ingest import IngestConfig, ingest
from pipelines.jobs.pack import build_pack
from pipelines.jobs.score import ScoreConfig, score
from pipelines.takedown import find_samples, purge
from schemas.errors import BadInput
from schemas.registry import contract
from schemas.root import Root
from tests.data.pictures import attempts, encoded, put, samples, stored_bytes

CONFIG = IngestConfig(show_progress=False, num_workers=1)
TRANSFORM = Transform(resolution=8)


def exclude(root, sample_id):
    row = {
        "sample_id": sample_id,
        "excluded_at": datetime.datetime.now(datetime.UTC),
        "why": "asked for",
    }
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        put(tmp_path / f"in/{number}.png", encoded(number))
        put(tmp_path / f"in/{number}.txt", f"caption {number}")
    return tmp_path / "in"


@pytest.fixture
def filled(root, folder, spark):
    ingest(root, "b", folder, CONFIG)
    score(root, "b", ScoreConfig(encoder=None))
    build_pack(root, "b", TRANSFORM)
    return root


def test_a_sample_is_found_by_id_prefix_or_address(filled, folder):
    wanted = samples(filled)[1]["sample_id"]
    for name in (wanted, wanted[:10], str(folder / "1.png")):
        assert find_samples(filled, [name]) == [wanted]
    for name in ("0000000000", "http://nowhere/x.png", wanted[:7]):
        with pytest.raises(BadInput, match="no sample_id, prefix of one or URL"):
            find_samples(filled, [name])


def test_a_purge_leaves_no_byte_and_no_fact_and_moves_nothing_else(filled):
    before, packs = samples(filled), PackSet.open(filled.packs, TRANSFORM, ["b"])
    pixels = packs.take(np.arange(4)).copy()
    gone = before[1]
    exclude(filled, gone["sample_id"])
    done = purge(filled)
    assert (done.num_places, done.num_pack_rows) == (1, 1)
    assert done.facts == {"scores/classical": 1}
    assert not any(stored_bytes(filled, gone))
    kept = [row for row in before if row is not gone]
    assert samples(filled) == kept
    assert [stored_bytes(filled, row) for row in kept] == [encoded(n) for n in (0, 2, 3)]
    now = PackSet.open(filled.packs, TRANSFORM, ["b"]).take(np.arange(4))
    assert not now[1].any()
    assert np.array_equal(now[[0, 2, 3]], pixels[[0, 2, 3]])
    # Also past the exclusions nothing is left of it in the newest versions.
    for name in ("samples", "ingest_attempts"):
        rows = filled.tables.open(name).read(exclude=False).to_pylist()
        row = next(r for r in rows if r["sample_id"] == gone["sample_id"])
        assert row["caption"] is None
    assert purge(filled).facts == {}
    assert purge(filled).num_places == 0


def test_jobs_stay_current_after_a_purge_and_the_image_never_comes_back(filled, folder, spark):
    gone = samples(filled)[0]
    exclude(filled, gone["sample_id"])
    purge(filled)
    assert score(filled, "b", ScoreConfig(encoder=None)).unchanged == 3
    put(folder / "4.png", encoded(4))
    report = ingest(filled, "b", folder, CONFIG)
    assert report.rejected == {"taken_down": 1}
    found = attempts(filled)
    assert len(samples(filled)) == 4
    assert "0.png" not in found  # an excluded attempt is left out by every reader
    assert not any(
        encoded(0) in path.read_bytes() for path in Root(filled.path).shards.rglob("*.tar")
    )


@pytest.mark.parametrize("ingested_again_first", [False, True])
def test_shards_of_earlier_versions_of_a_batch_are_purged_too(filled, folder, ingested_again_first):
    gone = samples(filled)[0]
    put(folder / "4.png", encoded(4))
    ingest(filled, "b", folder, CONFIG)
    assert len(list(filled.shards.rglob("*.tar"))) == 2
    exclude(filled, gone["sample_id"])
    if ingested_again_first:
        put(folder / "5.png", encoded(5))
        ingest(filled, "b", folder, CONFIG)
    assert purge(filled).num_places == 2
    shards = [path.read_bytes() for path in filled.shards.rglob("*.tar")]
    assert not any(encoded(0) in data for data in shards)
    assert all(encoded(1) in data for data in shards)


def test_an_address_is_taken_down_by_command_and_all_that_it_ever_named(filled, folder, capsys):
    gone = samples(filled)[1]["sample_id"]
    put(folder / "1.png", encoded(9))
    ingest(filled, "again", folder, CONFIG)
    address = str(folder / "1.png")
    assert len(find_samples(filled, [address])) == 2
    command = ["exclude", "--root", str(filled.path), address, "--why", "asked for"]
    assert cli.main(command) == 0
    assert gone in capsys.readouterr().out
    assert len(filled.tables.excluded_sample_ids) == 2
    assert gone not in {row["sample_id"] for row in samples(filled)}


def test_upkeep_goes_by_command_and_says_what_it_did(filled, capsys):
    exclude(filled, samples(filled)[1]["sample_id"])
    for job, said in (
        ("purge", "1 places in shards and 1 rows of packs blanked"),
        ("compact", "files became"),
        ("vacuum", "vacuum: read"),
    ):
        assert main([job, "--root", str(filled.path)]) == 0
        assert said in capsys.readouterr().out

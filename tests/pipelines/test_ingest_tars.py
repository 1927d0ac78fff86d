"""Ingest of WebDataset shards, whole, broken and hostile."""

import io
import json
import os
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.tar_index import read_index
from schemas.errors import BadInput
from schemas.ids import sample_id_of
from tests.data.pictures import attempts, encoded, put, samples, stored_bytes

QUIET = IngestConfig(show_progress=False)


def tar_of(members, **options):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            data = data if isinstance(data, bytes) else data.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def outcome(root):
    return {key: row["reason"] or row["status"] for key, row in attempts(root).items()}


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return name, info


def test_images_captions_and_labels_of_a_shard_are_taken(root, tmp_path):
    shard = put(
        tmp_path / "web.tar",
        tar_of(
            [
                ("000.jpg", encoded(1, "JPEG")),
                ("000.txt", "a caption"),
                ("000.json", json.dumps({"caption": "not this", "label": "l0"})),
                ("001.cls", "7"),
                ("001.png", encoded(2)),
                ("deep/002.input.webp", encoded(3, "WEBP")),
                ("003.png", encoded(2)),
                ("004.npy", "numbers"),
                ("005.txt", "words without a picture"),
            ]
        ),
    )
    report = ingest(root, "b", shard, QUIET)
    assert outcome(root) == {
        "web.tar#000.jpg": "stored",
        "web.tar#001.png": "stored",
        "web.tar#deep/002.input.webp": "stored",
        "web.tar#003.png": "duplicate",
        "web.tar#004.npy": "unsupported_format",
        "web.tar#005.txt": "missing_image",
    }
    words = [(row["caption"], row["label"], row["source"]) for row in samples(root)]
    assert words == [("a caption", "l0", "web"), (None, "7", "web"), (None, None, "web")]
    assert report.read == 6
    for row in samples(root):
        assert sample_id_of(stored_bytes(root, row)) == row["sample_id"]


def test_shards_are_found_in_folders_and_by_patterns(root, tmp_path):
    for number in range(3):
        put(tmp_path / f"set/{number:05d}.tar", tar_of([("a.png", encoded(number))]))
    put(tmp_path / "set/more/x.tar", tar_of([("a.png", encoded(9))]))
    assert ingest(root, "all", tmp_path / "set", QUIET).written == 4
    assert [row["source"] for row in samples(root, "all")] == ["set", "set", "set", "more"]
    assert ingest(root, "some", f"{tmp_path}/set/0000[01].tar", QUIET).written == 2
    with pytest.raises(BadInput, match=r"matches no \.tar"):
        ingest(root, "none", f"{tmp_path}/set/9*.tar", QUIET)


def test_a_shard_without_members_is_a_clear_error(root, tmp_path):
    with pytest.raises(BadInput, match="holds no image"):
        ingest(root, "b", put(tmp_path / "none.tar", tar_of([])), QUIET)


def test_our_own_shards_can_be_ingested_again(root, tmp_path):
    put(tmp_path / "in/a.png", encoded(1))
    put(tmp_path / "in/a.txt", "kept")
    put(tmp_path / "in/b.jpg", encoded(2, "JPEG"))
    ingest(root, "first", tmp_path / "in", QUIET)
    ingest(root, "second", root.shards / "first", QUIET)
    first, second = samples(root, "first"), samples(root, "second")
    assert [(r["sample_id"], r["caption"]) for r in first] == [
        (r["sample_id"], r["caption"]) for r in second
    ]


@pytest.mark.parametrize("cut_inside", ["image", "header", "padding", "end"])
def test_of_a_truncated_shard_the_rest_is_kept_and_the_loss_is_counted(root, tmp_path, cut_inside):
    members = [(f"{n}.png", encoded(n)) for n in range(5)]
    whole = tar_of(members)
    index = list(read_index(put(tmp_path / "whole.tar", whole)))
    last = index[-1]
    cut = {
        "image": last.offset + last.num_bytes // 2,
        "header": last.offset - 300,
        "padding": last.offset + last.num_bytes + 1,
        "end": -(-(last.offset + last.num_bytes) // 512) * 512,
    }[cut_inside]
    shard = put(tmp_path / "cut.tar", whole[:cut])
    report = ingest(root, "b", shard, QUIET)
    lost = {"image": {"truncated_member": 1}, "header": {"truncated_shard": 1}}
    assert report.rejected == lost.get(cut_inside, {})
    assert report.written == (4 if cut_inside in lost else 5)


def test_concatenated_shards_are_read_to_their_end(root, tmp_path):
    one = tar_of([("a.png", encoded(1)), ("b.png", encoded(2))])
    two = tar_of([("a.png", encoded(3)), ("c.png", encoded(2))])
    ingest(root, "b", put(tmp_path / "x.tar", one + two), QUIET)
    assert outcome(root) == {
        "x.tar#a.png": "stored",
        "x.tar#b.png": "stored",
        "x.tar#a.png~2": "stored",
        "x.tar#c.png": "duplicate",
    }


def test_after_a_destroyed_header_the_next_member_is_found_and_the_loss_is_told(root, tmp_path):
    data = bytearray(tar_of([(f"{n}.png", encoded(n)) for n in range(4)]))
    index = list(read_index(put(tmp_path / "whole.tar", bytes(data))))
    begin = index[1].offset - 512
    data[begin : begin + 512] = b"\xaa" * 512
    report = ingest(root, "b", put(tmp_path / "x.tar", bytes(data)), QUIET)
    assert report.written == 3
    assert report.rejected == {"corrupt_shard": 1}
    assert outcome(root)[f"x.tar#@{begin}"] == "corrupt_shard"


def test_hostile_members_are_refused_and_nothing_is_written_outside(root, tmp_path):
    sparse = tarfile.TarInfo("sparse.png")
    sparse.type = tarfile.GNUTYPE_SPARSE
    home = tmp_path / "home"
    shard = put(
        home / "evil.tar",
        tar_of(
            [
                ("../../escape.png", encoded(1)),
                (f"{tmp_path}/absolute.png", encoded(2)),
                special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
                special("hard.png", tarfile.LNKTYPE, "../../escape.png"),
                special("device.png", tarfile.CHRTYPE),
                special("block.png", tarfile.BLKTYPE),
                special("pipe.png", tarfile.FIFOTYPE),
                special("folder.png", tarfile.DIRTYPE),
                ("sparse.png", sparse),
                ("good.png", encoded(3)),
            ],
            format=tarfile.GNU_FORMAT,
        ),
    )
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(root.path)}
    report = ingest(root, "b", shard, QUIET)
    assert {p for p in tmp_path.rglob("*") if not p.is_relative_to(root.path)} == before
    assert report.written == 3
    assert report.rejected == {"unsupported_member": 6}
    for row in samples(root):
        assert (root.shards / row["shard"]).resolve().is_relative_to(root.shards.resolve())


def raw_header(name, size, kind):
    info = tarfile.TarInfo(name)
    info.size, info.type = 0, kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    # Base-256, as GNU tar writes sizes that octal digits cannot hold.
    block[124:136] = struct.pack(">BxxxQ", 0x80 if size >= 0 else 0xFF, size % 2**64)
    if size < 0:
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "evil",
    [
        raw_header("long", 2**40, tarfile.GNUTYPE_LONGNAME),
        raw_header("pax", 2**40, tarfile.XHDTYPE),
        raw_header("back.png", -1024, tarfile.REGTYPE),
        raw_header("huge.png", 2**50, tarfile.REGTYPE),
        raw_header("long", 5, tarfile.GNUTYPE_LONGNAME) * 3000,
    ],
    ids=["long name of a terabyte", "attributes of a terabyte", "negative", "huge", "chain"],
)
def test_hostile_headers_end_the_shard_with_a_reason(root, tmp_path, evil):
    first = tar_of([("a.png", encoded(1))]).rstrip(b"\0")
    first += b"\0" * (-len(first) % 512)
    shard = put(tmp_path / "x.tar", first + evil + tar_of([("b.png", encoded(2))]))
    report = ingest(root, "b", shard, QUIET)
    assert outcome(root)["x.tar#a.png"] == "stored"
    assert report.num_rejected >= 1
    assert set(report.rejected) <= {"corrupt_shard", "truncated_member"}


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_file_that_is_no_tar_is_counted_and_the_other_shards_are_kept(root, tmp_path, content):
    put(tmp_path / "set/a.tar", content)
    put(tmp_path / "set/b.tar", tar_of([("a.png", encoded(1))]))
    report = ingest(root, "b", tmp_path / "set", QUIET)
    assert (report.written, report.rejected) == (1, {"corrupt_shard": 1})


@settings(max_examples=200, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 4096),
)
def test_the_index_of_any_bytes_ends_and_stays_inside_the_file(tmp_path_factory, flips, cut):
    data = bytearray(tar_of([(f"{n}.png", bytes([n]) * 700) for n in range(3)])[:4096])
    for place, value in flips:
        data[place] = value
    path = put(tmp_path_factory.mktemp("t") / "x.tar", bytes(data[:cut]))
    members = list(read_index(path))
    for member in members:
        assert member.offset >= 0
        if member.reason is None:
            assert member.offset + member.num_bytes <= cut


def test_running_twice_on_shards_changes_nothing(root, tmp_path):
    shard = put(tmp_path / "x.tar", tar_of([(f"{n}.png", encoded(n)) for n in range(5)]))
    ingest(root, "b", shard, QUIET)
    tables = ["ingest_batches", "ingest_attempts", "samples"]
    before = root.tables.versions(tables)
    assert ingest(root, "b", shard, QUIET).unchanged == 5
    os.utime(shard, (1, 1))
    assert ingest(root, "b", shard, QUIET).unchanged == 5
    assert root.tables.versions(tables) == before
    assert Path(shard).exists()

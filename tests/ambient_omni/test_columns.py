import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ambient_omni.data import columns
from ambient_omni.data.columns import CodeColumn, RowOrder, Texts, scratch_bytes
from ambient_omni.data.sample_ids import SampleIds
from schemas.registry import contract

BATCHES = {"ingest_batch": ["ref", "pool"]}


def read(root, **settings):
    order = RowOrder(root.tables.open("samples"), BATCHES)
    return pa.concat_tables(order.parts(["sample_id"], **settings))


def test_parts_are_the_rows_of_the_table_in_its_order(trainable, monkeypatch):
    whole = trainable.tables.read("samples", ["sample_row", "sample_id"], BATCHES)
    assert read(trainable).equals(whole)
    monkeypatch.setattr(columns, "_PART_ROWS", 1)
    assert read(trainable).equals(whole)
    assert RowOrder(trainable.tables.open("samples"), BATCHES).max_rows == whole.num_rows


def test_files_whose_rows_interleave_are_sorted(trainable, tmp_path):
    rows = trainable.tables.read("samples", where={"ingest_batch": "pool"})
    part = {"ingest_batch": "pool"}
    files = []
    for odd in (1, 0):
        writer = trainable.tables.writer("samples", part, f"commit{odd}")
        writer.write(rows.take(np.arange(odd, rows.num_rows, 2)))
        files += writer.close()
    trainable.tables.commit("samples", files, slice=part, inputs={"again": 1}, job="tests")
    whole = trainable.tables.read("samples", ["sample_row", "sample_id"], BATCHES)
    assert read(trainable).equals(whole)


def test_excluded_rows_are_left_out(trainable):
    gone = trainable.tables.read("samples", ["sample_id"], {"ingest_batch": "pool"})["sample_id"][3]
    row = {"sample_id": gone.as_py(), "excluded_at": 0, "why": "asked"}
    trainable.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")
    assert gone.as_py() not in read(trainable)["sample_id"].to_pylist()
    assert read(trainable).num_rows == 31


def test_codes_name_texts_by_their_sorted_number_and_count_what_is_missing():
    column = CodeColumn()
    column.add(pa.chunked_array([["b", "c", None], ["a", "b"]]))
    column.add(pa.chunked_array([pa.array(["c", "a"]).dictionary_encode()]))
    codes, names = column.finish()
    assert names == ("a", "b", "c")
    assert codes.dtype == np.uint8
    assert [names[code] for code in codes[[0, 1, 3, 4, 5, 6]]] == ["b", "c", "a", "b", "c", "a"]
    assert column.num_missing == 1


def test_only_what_rows_hold_has_a_number_unless_it_is_pinned():
    pictured = pa.array(["b", "gone", "a", "b"]).dictionary_encode()
    kept = pictured.filter(pa.array([True, False, True, True]))
    assert kept.dictionary.to_pylist() == ["b", "gone", "a"]
    for pinned, names in (((), ("a", "b")), (("a", "gone", "b"), ("a", "gone", "b"))):
        column = CodeColumn()
        column.add(pa.chunked_array([kept]))
        codes, found = column.finish(pinned)
        assert found == names
        assert [names[code] for code in codes] == ["b", "a", "b"]


def test_columns_that_a_table_gained_later_are_null_in_its_older_files(trainable):
    part = {"ingest_batch": "pool"}
    table = trainable.tables.open("samples")
    file = next(path for path in table.file_uris(part))
    whole = pq.read_table(file)
    pq.write_table(whole.drop_columns(["caption"]), file)
    found = pa.concat_tables(RowOrder(table, part).parts(["caption", "sample_id"], ["caption"]))
    assert found["caption"].null_count == found.num_rows == 20
    assert found["sample_id"].equals(whole.sort_by("sample_row")["sample_id"])


def test_texts_come_back_from_their_files(tmp_path):
    texts = Texts(tmp_path)
    texts.add(pa.chunked_array([["one", "", "drei ä"], ["\u0000four"]]))
    texts.add(pa.chunked_array([pa.array(["skipped", "five"]).slice(1)]))
    assert len(texts) == 5
    assert texts.take(np.array([4, 0, 2, 1, 3])) == ("five", "one", "drei ä", "", "\u0000four")
    assert not list(tmp_path.iterdir())


def test_texts_that_are_all_empty_need_no_bytes(tmp_path):
    texts = Texts(tmp_path)
    texts.add(pa.chunked_array([["", ""]]))
    assert texts.take(np.array([1])) == ("",)


def test_a_large_array_is_mapped_from_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_IN_MEMORY_BYTES", 10)
    mapped = scratch_bytes((4, 32), tmp_path)
    mapped[2] = 7
    assert isinstance(mapped, np.memmap)
    assert not list(tmp_path.iterdir())
    assert SampleIds(mapped).names(np.array([2])) == ("07" * 32,)


def test_sample_ids_are_what_the_table_says():
    names = ["0123456789abcdef" * 4, "f" * 64, "0" * 64]
    ids = SampleIds.of_hex(pa.chunked_array([names[:2], names[1:]]))
    assert ids.names(np.array([0, 3, 1])) == (names[0], names[2], names[1])
    assert ids.noise_keys(np.array([0, 1])).tolist() == [0x0123456789ABCDEF, 2**64 - 1]
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        SampleIds.of_hex(pa.chunked_array([["abc"]]))

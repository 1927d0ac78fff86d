import pytest

from ambient_omni.data.shard_bytes import ShardBytes
from schemas.errors import BadInput
from schemas.ids import sample_id_of


def test_the_bytes_of_every_sample_are_those_that_its_id_names(trainable):
    stored = ShardBytes.from_table(trainable.path, ["ref", "pool"])
    ids = trainable.tables.read("samples", ["sample_id"])["sample_id"].to_pylist()
    assert [sample_id_of(stored[i]) for i in range(len(stored))] == ids


def test_a_shard_that_vanished_or_was_cut_is_said_with_the_sample(trainable):
    row = trainable.tables.read("samples", where={"ingest_batch": "ref"}).to_pylist()[5]
    path = trainable.shards / row["shard"]
    path.write_bytes(path.read_bytes()[: row["byte_offset"] + 1])
    with pytest.raises(BadInput, match="shorter than the table says: sample number 5"):
        ShardBytes.from_table(trainable.path, ["ref"])[5]
    path.unlink()
    with pytest.raises(BadInput, match=r"cannot be read .* sample number 5 is in it"):
        ShardBytes.from_table(trainable.path, ["ref"])[5]

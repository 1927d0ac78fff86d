import contextlib
import datetime as dt
import multiprocessing
import pickle
import shutil

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput, ContractViolation, TableMissing
from schemas.registry import contract
from schemas.root import Root
from schemas.store import Store

NAME = "reference_sets"


def members(rows, reference_set="x"):
    return pa.table(
        {
            "reference_set": [reference_set] * len(rows),
            "sample_row": pa.array(rows, pa.int64()),
            "role": ["trusted"] * len(rows),
        },
        schema=contract(NAME).arrow_schema,
    )


def commit(root, rows, reference_set="x", inputs=None):
    return root.tables.commit(
        NAME,
        members(rows, reference_set),
        slice={"reference_set": reference_set},
        inputs=inputs or {"rows": list(rows)},
        job="test",
    )


def rows_of(root, **where):
    return root.tables.read(NAME, ["sample_row"], where or None)["sample_row"].to_pylist()


def files_on_disk(root, name=NAME):
    return sorted(root.tables.table_path(name).rglob("*.parquet"))


def batch(name, ordinal=0):
    row = {
        "ingest_batch": name,
        "batch_ordinal": ordinal,
        "role": "pool",
        "source_kind": "folder",
        "source_uri": "u",
    }
    return contract("ingest_batches").table([row])


def test_a_table_that_is_not_there_yet_reads_as_no_rows_but_cannot_be_opened(root):
    assert root.tables.read(NAME).num_rows == 0
    assert root.tables.version(NAME) is None
    with pytest.raises(TableMissing, match="there is no table reference_sets yet"):
        root.tables.open(NAME)


def test_the_same_inputs_are_a_no_op_and_leave_no_files(root):
    assert commit(root, [1, 2]).written == 2
    before = files_on_disk(root)
    again = commit(root, [1, 2])
    assert (again.written, again.unchanged, again.version) == (0, 2, 0)
    assert files_on_disk(root) == before


def test_changed_inputs_replace_the_slice_and_no_other(root):
    commit(root, [1, 2], "x")
    commit(root, [7], "y")
    commit(root, [3], "x")
    assert rows_of(root, reference_set="x") == [3]
    assert rows_of(root, reference_set="y") == [7]


def test_inputs_that_change_back_are_committed_again(root):
    for rows in ([1], [2], [1]):
        commit(root, rows)
    assert rows_of(root) == [1]
    assert root.tables.version(NAME) == 2


def test_a_pinned_version_reads_what_it_read_then(root):
    commit(root, [1, 2])
    commit(root, [3])
    assert root.tables.open(NAME, 0).read()["sample_row"].to_pylist() == [1, 2]
    with pytest.raises(TableMissing, match="at version 9"):
        root.tables.open(NAME, 9)


def test_a_slice_knows_what_it_was_made_from(root):
    assert root.tables.fingerprint(NAME, {"reference_set": "x"}) is None
    commit(root, [1], inputs={"a": 1})
    assert root.tables.is_current(NAME, {"reference_set": "x"}, {"a": 1})
    assert not root.tables.is_current(NAME, {"reference_set": "x"}, {"a": 2})
    assert root.tables.fingerprint(NAME, {"reference_set": "y"}) is None


def test_rows_that_break_the_contract_leave_nothing_behind(root):
    commit(root, [1])
    with pytest.raises(ContractViolation, match="sample_row < 0"):
        commit(root, [-1])
    with pytest.raises(ContractViolation, match="more than once"):
        commit(root, [2, 2])
    assert rows_of(root) == [1]
    assert len(files_on_disk(root)) == 1


def test_rows_of_another_slice_are_refused(root):
    with pytest.raises(ContractViolation, match="in the slice"):
        root.tables.commit(
            NAME, members([1], "y"), slice={"reference_set": "x"}, inputs={}, job="test"
        )


def test_a_key_that_stands_in_two_files_is_refused_and_both_are_removed(root):
    files = []
    for _ in range(2):
        writer = root.tables.writer(NAME, {"reference_set": "x"}, "c1")
        writer.write(members([1]))
        files += writer.close()
    with pytest.raises(ContractViolation, match="repeat a key"):
        root.tables.commit(NAME, files, slice={"reference_set": "x"}, inputs={}, job="test")
    assert files_on_disk(root) == []


def test_a_key_that_was_written_twice_to_one_file_is_refused(root):
    writer = root.tables.writer(NAME, {"reference_set": "x"}, "c1")
    writer.write(members([1]))
    writer.write(members([1]))
    with pytest.raises(ContractViolation, match="1 rows repeat a key"):
        root.tables.commit(
            NAME, writer.close(), slice={"reference_set": "x"}, inputs={}, job="test"
        )
    assert files_on_disk(root) == []


def test_a_null_where_none_may_be_is_told_with_its_row(root):
    rows = {"reference_set": ["x"], "sample_row": pa.array([None], pa.int64()), "role": ["trusted"]}
    with pytest.raises(ContractViolation, match=r"sample_row must not be null in 1 of 1 rows"):
        root.tables.commit(
            NAME, pa.table(rows), slice={"reference_set": "x"}, inputs={}, job="test"
        )
    assert files_on_disk(root) == []


def land_and_then(monkeypatch, tables, error):
    """Let the next commit land and then raise, once."""
    original, raised = tables._log, []

    def log(self, *arguments):
        version = original(self, *arguments)
        if not raised:
            raised.append(True)
            raise error
        return version

    monkeypatch.setattr(tables, "_log", log)


def test_a_commit_that_landed_but_was_reported_failed_keeps_its_files(root, monkeypatch):
    land_and_then(monkeypatch, type(root.tables), CommitFailedError("timed out"))
    done = commit(root, [1, 2])
    assert (done.version, done.written, done.unchanged) == (0, 2, 0)
    assert rows_of(root) == [1, 2]
    assert commit(root, [1, 2]).unchanged == 2
    assert rows_of(root) == [1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CommitFailedError("timed out")])
def test_an_upsert_that_landed_before_it_was_stopped_keeps_its_files(root, monkeypatch, error):
    root.tables.upsert("ingest_batches", batch("a", 0), job="test")
    land_and_then(monkeypatch, type(root.tables), error)
    with contextlib.suppress(KeyboardInterrupt):
        root.tables.upsert("ingest_batches", batch("b", 1), job="test")
    assert root.tables.read("ingest_batches")["ingest_batch"].to_pylist() == ["a", "b"]


def test_membership_of_nothing_is_no_rows(root):
    commit(root, [1, 2])
    assert rows_of(root, sample_row=[]) == rows_of(root, reference_set=[]) == []


def test_files_of_several_writers_become_visible_in_one_commit(root):
    files = []
    for start in (0, 10):
        writer = pickle.loads(pickle.dumps(root.tables.writer(NAME, {"reference_set": "x"}, "c1")))
        writer.write(members([start]))
        writer.write(members([start + 1]))
        files += writer.close()
    assert root.tables.read(NAME).num_rows == 0
    root.tables.commit(NAME, files, slice={"reference_set": "x"}, inputs={}, job="test")
    assert rows_of(root) == [0, 1, 10, 11]
    assert root.tables.version(NAME) == 0


def test_the_files_of_a_failed_job_can_be_discarded(root):
    writer = root.tables.writer(NAME, {"reference_set": "x"}, "gone")
    writer.write(members([1]))
    writer.close()
    assert root.tables.discard(NAME, "gone") == 1
    assert files_on_disk(root) == []


def test_a_slice_of_no_rows_is_remembered_as_done(root):
    root.tables.commit(NAME, members([]), slice={"reference_set": "x"}, inputs={"n": 0}, job="t")
    assert root.tables.is_current(NAME, {"reference_set": "x"}, {"n": 0})
    assert root.tables.read(NAME).num_rows == 0


def test_rows_come_in_the_order_of_their_key(root):
    commit(root, [5, 3, 9])
    commit(root, [4, 1], "y")
    assert rows_of(root) == [1, 3, 4, 5, 9]


def test_an_upsert_replaces_by_key_and_twice_equals_once(root):
    root.tables.upsert("ingest_batches", batch("b", 0), job="test")
    root.tables.upsert("ingest_batches", batch("a", 1), job="test")
    root.tables.upsert("ingest_batches", batch("b", 5), job="test")
    again = root.tables.upsert("ingest_batches", batch("b", 5), job="test")
    found = root.tables.read("ingest_batches")
    assert found["ingest_batch"].to_pylist() == ["a", "b"]
    assert found["batch_ordinal"].to_pylist() == [1, 5]
    assert (again.written, again.version) == (0, 2)


def test_other_engines_read_the_same_rows(root):
    commit(root, [1, 2], "x")
    commit(root, [3], "y")
    commit(root, [4], "x")
    path = str(root.tables.table_path(NAME))
    ours = root.tables.read(NAME).to_pylist()
    delta = DeltaTable(path)
    key = [("sample_row", "ascending")]
    assert pa.table(delta.to_pyarrow_table()).sort_by(key).to_pylist() == ours
    assert pl.read_delta(path).sort("sample_row").to_dicts() == ours
    arrow = delta.to_pyarrow_dataset()  # noqa: F841 - duckdb finds it by name
    found = duckdb.sql("select sample_row from arrow order by sample_row").fetchall()
    assert found == [(3,), (4,)]


def test_partition_values_prune_files(root):
    commit(root, [1], "x")
    commit(root, [2], "y")
    uris = root.tables.open(NAME).file_uris({"reference_set": "y"})
    assert len(uris) == 1
    assert "reference_set=y" in uris[0]


def test_excluded_samples_are_left_out_of_every_read(root, make_batch, images):
    samples = make_batch(root, "b", images(3, side=8))
    rows, ids = samples["sample_row"].to_pylist(), samples["sample_id"].to_pylist()
    commit(root, rows)
    gone = contract("exclusions").table(
        [{"sample_id": ids[1], "excluded_at": dt.datetime.now(dt.UTC), "why": "asked"}]
    )
    root.tables.upsert("exclusions", gone, job="test")
    assert root.tables.read("samples")["sample_id"].to_pylist() == [ids[0], ids[2]]
    assert rows_of(root) == [rows[0], rows[2]]
    assert rows_of(Root.open(root.path)) == [rows[0], rows[2]]
    assert root.tables.open(NAME, 0).excluded_sample_rows() == {rows[1]}
    assert root.tables.open("samples").read(exclude=False).num_rows == 3


def exclude(root, sample_id):
    row = {"sample_id": sample_id, "excluded_at": dt.datetime.now(dt.UTC), "why": "asked"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="test")


def test_a_take_down_by_another_process_is_obeyed_by_the_next_read(root, make_batch, images):
    samples = make_batch(root, "b", images(3, side=8))
    commit(root, samples["sample_row"].to_pylist())
    other = Root.open(root.path)
    assert len(rows_of(other)) == other.tables.read("samples").num_rows == 3
    exclude(root, samples["sample_id"][1].as_py())
    assert len(rows_of(other)) == other.tables.read("samples").num_rows == 2
    # The same bytes come in again, in another batch.
    again = make_batch(root, "c", images(3, side=8))
    commit(root, again["sample_row"].to_pylist(), "y")
    assert rows_of(other, reference_set="y") == [again["sample_row"][i].as_py() for i in (0, 2)]


@pytest.mark.parametrize("taken_down_first", [False, True])
def test_facts_of_a_take_down_stay_hidden_when_it_leaves_its_source(
    root, make_batch, images, taken_down_first
):
    samples = make_batch(root, "b", images(3, side=8))
    rows, gone = samples["sample_row"].to_pylist(), samples["sample_id"][1].as_py()
    commit(root, rows)
    if taken_down_first:
        exclude(root, gone)
    root.tables.commit(
        "samples",
        samples.filter(pa.array([True, False, True])),
        slice={"ingest_batch": "b"},
        inputs={"left": 1},
        job="test",
    )
    if not taken_down_first:
        exclude(root, gone)
    assert rows_of(root) == [rows[0], rows[2]]
    assert root.tables.open("samples", 0).excluded_sample_rows() == {rows[1]}


def _commit_many(path, worker):
    root = Root.open(path)
    for number in range(4):
        commit(root, [number], f"w{worker}")
        root.tables.upsert(
            "ingest_batches", batch(f"w{worker}-{number}", 10 * worker + number), job="test"
        )


def test_concurrent_writers_lose_nothing(root):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_commit_many, args=(root.path, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert root.tables.version(NAME) == 11
    assert rows_of(root) == [3, 3, 3]
    assert root.tables.read("ingest_batches").num_rows == 12


def lose_a_race(root, monkeypatch, rows):
    """Without the machine's own lock, let another writer commit `rows` just before the next try."""
    tables = type(root.tables)
    monkeypatch.setattr(tables, "_commit_lock", lambda self, name: contextlib.nullcontext())
    original, raced = tables._log, []

    def raced_log(self, *arguments):
        if not raced:
            raced.append(True)
            commit(Root.open(root.path), rows, "x")
        return original(self, *arguments)

    monkeypatch.setattr(tables, "_log", raced_log)


def test_writers_on_different_machines_meet_in_the_log(root, monkeypatch):
    """delta-rs refuses the loser and the retry heals it."""
    commit(root, [1], "x")
    lose_a_race(root, monkeypatch, [2])
    commit(root, [3], "x")
    assert rows_of(root) == [3]


def test_two_writers_that_take_turns_replace_what_the_other_wrote(root):
    other = Root.open(root.path)
    for turn in range(6):
        commit((root, other)[turn % 2], [turn], inputs={"turn": turn})
    assert rows_of(root) == [5]
    assert commit(root, [5], inputs={"turn": 5}).unchanged == 1
    assert len(DeltaTable(root.tables.table_path(NAME)).file_uris()) == 1


def test_a_table_that_was_removed_is_made_anew_by_who_had_written_it(root):
    commit(root, [1], "x")
    commit(root, [2], "y")
    shutil.rmtree(root.tables.table_path(NAME))
    assert commit(root, [1], "x").written == 1
    assert rows_of(root) == [1]


def test_a_table_that_others_made_anew_is_opened_anew_by_who_had_written_it(root):
    commit(root, [1], "x")
    commit(root, [2], "y")
    shutil.rmtree(root.tables.table_path(NAME))
    other = Root.open(root.path)
    for number in range(4):
        commit(other, [number], "x")
    commit(root, [7], "x")
    assert rows_of(root) == [7]


def test_a_commit_that_landed_is_no_failure_when_its_version_cannot_be_asked_for(root, monkeypatch):
    commit(root, [1], "x")

    def unreachable(self, name):
        raise BadInput("the store cannot be asked")

    monkeypatch.setattr(Store, "has", unreachable)
    assert commit(root, [1, 2], "x").version == 1
    assert rows_of(root) == [1, 2]


def test_two_first_commits_of_one_slice_do_not_both_stay(root, monkeypatch):
    commit(root, [1], "other")
    lose_a_race(root, monkeypatch, [2])
    commit(root, [3], "x")
    assert rows_of(root, reference_set="x") == [3]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from("xy"), st.lists(st.integers(0, 20), unique=True, max_size=5)),
        max_size=5,
    )
)
def test_any_series_of_commits_leaves_the_last_rows_of_each_slice(tmp_path_factory, series):
    root = Root.create(tmp_path_factory.mktemp("roots") / "r")
    expected = {}
    for name, rows in series:
        commit(root, rows, name)
        expected[name] = sorted(rows)
    for name, rows in expected.items():
        assert rows_of(root, reference_set=name) == rows

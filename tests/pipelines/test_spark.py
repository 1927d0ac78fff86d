import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.receipts import Done, Receipts
from pipelines.slices import Target, run_slices
from pipelines.spark import (
    MASTER_VARIABLE,
    SparkSettings,
    TasksFailed,
    _forward,
    get_session,
    run_tasks,
)
from schemas.errors import BadInput, ContractViolation
from schemas.registry import contract
from schemas.root import Root

SLICE = {"reference_set": "trusted"}


def test_there_is_one_session_a_process_and_it_stays_on_loopback(spark):
    assert get_session(SparkSettings(num_cores=1)) is spark or get_session() == spark
    conf = spark.sparkContext.getConf()
    assert conf.get("spark.driver.bindAddress") == "127.0.0.1"
    assert conf.get("spark.ui.enabled") == "false"
    assert conf.get("spark.master") == "local[2,3]"


def test_workers_run_this_python_with_one_thread(spark):
    def look(_):
        return sys.executable, os.environ["OMP_NUM_THREADS"]

    assert run_tasks([0], look, label="look") == [(sys.executable, "1")]


def test_results_come_in_task_order_and_no_tasks_need_no_session(spark, monkeypatch):
    assert run_tasks(list(range(9)), lambda n: n * n, label="square") == [n * n for n in range(9)]
    monkeypatch.setattr("pipelines.spark.get_session", lambda settings: pytest.fail("started"))
    assert run_tasks([], abs, label="nothing") == []


def test_a_task_that_fails_twice_still_succeeds(spark):
    def flaky(n):
        from pyspark import TaskContext

        if n == 1 and TaskContext.get().attemptNumber() < 2:
            raise RuntimeError("not yet")
        return n

    assert run_tasks([0, 1, 2], flaky, label="flaky") == [0, 1, 2]


def test_a_task_that_always_fails_is_one_line_with_the_executors_words(spark):
    def broken(n):
        raise BadInput(f"shard {n} is gone; restore it")

    with pytest.raises(TasksFailed, match=r"broken: .*shard 0 is gone; restore it") as caught:
        run_tasks([0], broken, label="broken")
    assert "\n" not in str(caught.value)


def test_settings_name_a_cluster_and_force_nothing_local_on_it(monkeypatch):
    from pipelines.spark import _conf_of

    monkeypatch.setenv(MASTER_VARIABLE, "spark://cluster:7077")
    conf = _conf_of(SparkSettings(conf={"spark.executor.memory": "8g"}))
    assert conf["spark.master"] == "spark://cluster:7077"
    assert conf["spark.executor.memory"] == "8g"
    assert not {"spark.driver.bindAddress", "spark.pyspark.python"} & set(conf)
    assert SparkSettings(master="local[1]").resolved_master == "local[1]"


def reference_rows(first, count):
    return contract("reference_sets").table(
        [
            {"reference_set": "trusted", "sample_row": row, "role": "trusted"}
            for row in range(first, first + count)
        ]
    )


def write_ten(task, writers):
    writers["reference_sets"].write(reference_rows(task * 10, 10))
    return {"seen": 10}


def run(root, tasks, work=write_ten, inputs=None):
    target = Target("reference_sets", SLICE, inputs or {"n": 1})
    return run_slices(root, [target], tasks, work, job="test", batch="b1")


def stored(root):
    return root.tables.read("reference_sets")["sample_row"].to_pylist()


def files(root):
    return list(root.tables.table_path("reference_sets").rglob("*.parquet"))


def test_many_tasks_make_one_commit_and_the_same_inputs_none(spark, root):
    outcome = run(root, list(range(5)))
    assert outcome.counts == {"seen": 50}
    assert outcome.written == 50
    assert stored(root) == list(range(50))
    assert root.tables.version("reference_sets") == 0
    assert run(root, list(range(5))).commits == {}
    assert root.tables.version("reference_sets") == 0


def test_changed_inputs_replace_the_slice(spark, root):
    run(root, [0, 1, 2])
    run(root, [7], inputs={"n": 2})
    assert stored(root) == list(range(70, 80))


def test_a_failed_job_leaves_the_old_rows_and_the_next_run_does_only_what_is_missing(
    spark, root, tmp_path
):
    run(root, [0, 1])

    def fails_at_the_end(task, writers):
        write_ten(task, writers)
        if task == 2:
            time.sleep(1)  # the others are done by then
            raise RuntimeError("boom")
        return {"seen": 10}

    with pytest.raises(TasksFailed, match="boom"):
        run(root, [0, 1, 2], fails_at_the_end, {"n": 2})
    assert stored(root) == list(range(20))
    assert len(files(root)) == 2 + 2  # those of the try that failed are gone
    calls = tmp_path / "calls"
    calls.mkdir()

    def counted(task, writers):
        (calls / f"{task}-{time.monotonic_ns()}").touch()
        return write_ten(task, writers)

    outcome = run(root, [0, 1, 2], counted, {"n": 2})
    assert outcome.num_resumed == 2
    assert outcome.counts == {"seen": 30}
    assert [path.name[0] for path in calls.iterdir()] == ["2"]
    assert stored(root) == list(range(30))
    assert not any((root.work / "receipts").iterdir())


def test_receipts_of_files_that_are_gone_or_of_other_take_downs_do_not_count(root):
    stores = {"reference_sets": root.tables.store("reference_sets")}
    writer = root.tables.writer("reference_sets", SLICE, "run1")
    writer.write(reference_rows(0, 10))
    done = Done({"reference_sets": writer.close()}, {"seen": 10})
    receipts = Receipts.of(root, {"reference_sets": [SLICE, {"n": 1}]})
    receipts.keep(0, done)
    assert receipts.find(0, stores) == done
    assert receipts.find(1, stores) is None
    exclude_something(root)
    now = Receipts.of(root, {"reference_sets": [SLICE, {"n": 1}]})
    assert now.find(0, stores) is None
    (file,) = files(root)
    file.write_bytes(file.read_bytes()[:-1])
    assert receipts.find(0, stores) is None
    file.unlink()
    assert receipts.find(0, stores) is None


def exclude_something(root):
    row = {"sample_id": "0" * 64, "excluded_at": datetime.now(UTC), "why": "asked"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")


def test_executors_write_to_an_object_store_and_the_driver_commits_once(
    spark, tmp_path, object_store
):
    root = Root.create(tmp_path / "r", tables=f"{object_store}/spark")
    own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def work(task, writers):
        os.environ.update(own)  # executors know the store from an environment of their own
        return write_ten(task, writers)

    assert run(root, [0, 1, 2], work).written == 30
    assert stored(root) == list(range(30))
    assert root.tables.version("reference_sets") == 0
    assert run(root, [0, 1, 2], work).commits == {}


def test_a_worker_that_is_killed_is_tried_again_and_counts_once(spark, root, tmp_path):
    mark = tmp_path / "killed"

    def dies_once(task, writers):
        write_ten(task, writers)
        if task == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"seen": 10}

    outcome = run(root, [0, 1, 2], dies_once)
    assert mark.exists()
    assert outcome.counts == {"seen": 30}
    assert stored(root) == list(range(30))


def test_rows_that_break_the_contract_stop_the_job(spark, root):
    def bad(task, writers):
        writers["reference_sets"].write(reference_rows(0, 1).set_column(2, "role", [["nonsense"]]))
        return {}

    with pytest.raises(TasksFailed, match="role is not one of"):
        run(root, [0], bad)
    assert files(root) == []


def test_two_tasks_with_the_same_key_are_refused(spark, root):
    with pytest.raises(ContractViolation, match="repeat a key"):
        run(root, [0, 0])
    assert not root.tables.exists("reference_sets")
    assert files(root) == []


@pytest.mark.slow
def test_spark_submit_keeps_its_own_settings(tmp_path):
    """What `spark-submit` sets stands; here with the launcher that pyspark ships."""
    import pyspark

    from pipelines.java import ensure_java

    script = tmp_path / "job.py"
    script.write_text(
        "from pipelines.spark import get_session, run_tasks\n"
        "print('master', get_session().sparkContext.master)\n"
        "print('sum', sum(run_tasks([1, 2], abs, label='t')))\n"
    )
    env = os.environ | {"JAVA_HOME": ensure_java(), "SPARK_LOCAL_IP": "127.0.0.1"}
    env["PYSPARK_PYTHON"] = sys.executable
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    run = subprocess.run(
        [submit, "--master", "local[1]", "--conf", "spark.ui.enabled=false", str(script)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=300,
    )
    assert "master local[1]" in run.stdout, run.stderr
    assert "sum 3" in run.stdout


@pytest.mark.parametrize("ending", ["BrokenPipeError: [Errno 32] Broken pipe", "ValueError: real"])
def test_only_the_end_of_idle_workers_is_kept_from_people(capsys, ending):
    head = "Traceback (most recent call last):"
    frames = [f'  File "/x/pyspark.zip/pyspark/daemon.py", line {n}, in worker' for n in (264, 95)]
    # Two workers that end at once print line by line.
    lines = ["before", head, head, *frames, ending, *frames, ending, "after"]
    _forward(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
    kept = ["before", "after"] if "Broken" in ending else lines
    assert capsys.readouterr().err.splitlines() == kept


def test_tracebacks_of_tasks_go_through_whole(capsys):
    text = 'Traceback (most recent call last):\n  File "/x/ours.py", line 1\nBrokenPipeError: a\n'
    _forward(io.BytesIO(text.encode()))
    assert capsys.readouterr().err == text

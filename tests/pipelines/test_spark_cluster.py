"""The score job on a real cluster, by `spark-submit` and with our packages packed."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyspark
import pytest

from pipelines import packed
from pipelines.java import ensure_java
from pipelines.scorers.classical import CLASSICAL

# What the submitted script does beside one job: it looks who works, makes one task fail three
# times and another one straggle, and counts how often tasks were begun.
SCRIPT = """
import json, os, sys, time
from pathlib import Path

from pipelines.encoders import EncoderConfig
from pipelines.jobs import score as module
from pipelines.spark import get_session, run_tasks
from schemas.root import Root

plain, calls = module.measure, Path(sys.argv[2])

def look(_):
    import schemas
    from pyspark import SparkFiles
    time.sleep(0.5)
    return os.getppid(), schemas.__file__

def troubled(task, writers, **options):
    from pyspark import TaskContext
    attempt = TaskContext.get().attemptNumber()
    (calls / f"{task.first_row}-{attempt}-{time.monotonic_ns()}").touch()
    counts = plain(task, writers, **options)
    if task.shard.endswith("0.tar") and attempt < 3:
        raise RuntimeError("fails three times")
    if task.shard.endswith("1.tar") and attempt == 0:
        time.sleep(120)
    return counts

seen = run_tasks(list(range(8)), look, label="look")
module.measure = troubled
report = module.score(
    Root.open(sys.argv[1]), "b1", module.ScoreConfig(encoder=EncoderConfig(resolution=32))
)
print("FOUND", json.dumps({
    "master": get_session().sparkContext.master,
    "processes": len({pid for pid, _ in seen}),
    "packages": sorted({path for _, path in seen}),
    "driver": sys.modules["schemas"].__file__,
    "written": report.written,
}))
"""
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.memory": "512m",
    "spark.executor.memory": "512m",
    "spark.speculation": "true",
    "spark.speculation.interval": "200ms",
    "spark.speculation.multiplier": "1.5",
    "spark.speculation.quantile": "0.3",
    "spark.speculation.minTaskRuntime": "2s",
}


HOME = Path(pyspark.__file__).parent


def environment(host):
    """What a process of the cluster knows: a Java, and nothing of this repository."""
    return os.environ | {
        "JAVA_HOME": ensure_java(),
        "SPARK_HOME": str(HOME),
        "SPARK_LOCAL_IP": host,
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": "",
    }


@pytest.fixture
def cluster(tmp_path):
    """A master and two workers of one core; on hosts of their own, as speculation asks for."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = ["--page-port", "0", "--host"]
    address = f"spark://127.0.0.1:{port}"
    nodes = [("127.0.0.1", ["master", *place, "127.0.0.1", "--port", str(port)])]
    for host in ("127.0.0.2", "127.0.0.3"):
        size = ["--cores", "1", "--memory", "1g", "--work-dir", str(tmp_path / host)]
        nodes.append((host, ["worker", *place, host, *size, "--master", address]))
    processes = []
    try:
        for host, words in nodes:
            command = [sys.executable, "-m", "pipelines.spark_node", *words]
            with (tmp_path / f"{len(processes)}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(command, env=environment(host), stdout=log, stderr=log)
                )
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


def submit(script, packages, *arguments, master, folder):
    """Run a script by pyspark's own launcher."""
    settings = [word for name, value in SETTINGS.items() for word in ("--conf", f"{name}={value}")]
    command = [HOME / "bin" / "spark-submit", "--master", master, *settings]
    command += ["--py-files", packages, script, *arguments]
    own = environment("127.0.0.1")
    return subprocess.run(
        command, capture_output=True, text=True, env=own, check=False, timeout=240, cwd=folder
    )


@pytest.mark.slow
def test_a_cluster_with_failing_and_straggling_tasks_leaves_the_rows_of_a_quiet_run(
    cluster, root, make_batch, images, tmp_path
):
    make_batch(root, "b1", images(12))
    packages, _ = packed.pack(tmp_path / "packed")
    script, calls = tmp_path / "troubled.py", tmp_path / "calls"
    script.write_text(SCRIPT)
    calls.mkdir()
    done = submit(script, packages, str(root.path), str(calls), master=cluster, folder=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert said, done.stdout + done.stderr
    found = json.loads(said[0].removeprefix("FOUND "))
    assert found["master"] == cluster
    assert found["processes"] == 2
    assert found["written"] == 12
    # Driver and executors alike run what was packed.
    assert all("packages.zip" in path for path in [*found["packages"], found["driver"]])
    scores = root.tables.read("scores/classical")
    assert scores["sample_row"].to_pylist() == root.tables.read("samples")["sample_row"].to_pylist()
    for name, values in CLASSICAL.score(images(12)).columns.items():
        assert scores[name].to_numpy() == pytest.approx(values), name
    assert np.isfinite(np.array(root.tables.read("embeddings")["embedding"].to_pylist())).all()
    assert root.tables.version("scores/classical") == 0
    begun = [path.name.split("-")[:2] for path in calls.iterdir()]
    attempts = {row: sorted({int(n) for r, n in begun if r == row}) for row, _ in begun}
    assert sorted(map(len, attempts.values())) == [1, 2, 4]
    assert len(begun) == 7  # for three tasks


@pytest.mark.slow
def test_a_job_is_submitted_as_the_readme_says(root, make_batch, images, tmp_path, capsys):
    make_batch(root, "b1", images(4))
    assert packed.main(["--out", str(tmp_path / "packed")]) == 0
    assert "spark-submit --py-files" in capsys.readouterr().out
    packages, script = tmp_path / "packed" / "packages.zip", tmp_path / "packed" / "job.py"
    names = zipfile.ZipFile(packages).namelist()
    assert {"schemas/tables.py", "pipelines/jobs/score.py", "ambient_omni/rng.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    config = tmp_path / "score.yaml"
    config.write_text("encoder: null\n")
    arguments = ["score", "--root", str(root.path), "--batch", "b1", "--config", str(config)]
    done = submit(script, packages, *arguments, master="local-cluster[2,1,1024]", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "score b1" in done.stdout
    assert root.tables.read("scores/classical").num_rows == 4

"""``python -m benchmarks.graph_scale``: the graph with ten thousand batches.

* what the graph adds to Dagster's own load, in fresh processes side by side;
* a sensor's tick on 100,000 new files, and on one more file beside 10,000 batches;
* what the page asks for an asset with 10,000 partitions, of a real server;
* a look of the automation conditions over all of them.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable

from benchmarks.common import record
from dagster_project.commands.ui import _ordinary_signals, _stop, command, environment
from dagster_project.definitions import build_definitions
from dagster_project.defs.project import Project
from dagster_project.instance import home_of, open_instance
from dagster_project.recipe import load_recipe
from dagster_project.request import BatchRequest, Request
from schemas.root import Root

NUM_BATCHES, NUM_FILES, ROUNDS = 10_000, 100_000, 5
PACKAGES = ("dagster", "deltalake")
_IMPORT = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"
# What the page of an asset, its list of partitions and the lineage ask for, as the page does.
QUERIES = {
    "partitions of an asset": """query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) {
      ... on AssetNode { partitionKeysByDimension { name partitionKeys }
      partitionStats { numPartitions numMaterialized numFailed }
      assetPartitionStatuses { ... on DefaultPartitionStatuses {
      materializedPartitions failedPartitions unmaterializedPartitions } } } } }""",
    "an asset's newest materializations": """query($k: AssetKeyInput!) {
      assetOrError(assetKey: $k) { ... on Asset { assetMaterializations(limit: 50) {
      partition timestamp metadataEntries { label } } } } }""",
    "lineage with its counts": """{ assetNodes { assetKey { path } groupName kinds isStale: id
      partitionStats { numPartitions numMaterialized numFailed }
      dependencyKeys { path } assetMaterializations(limit: 1) { timestamp } } }""",
    "stale partitions": """query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) {
      ... on AssetNode { staleStatus } } }""",
}


def main() -> None:
    """Measure all four."""
    load_time()
    with tempfile.TemporaryDirectory(prefix="graph-scale-") as folder:
        tick(Path(folder))
    with tempfile.TemporaryDirectory(prefix="graph-scale-") as folder:
        root = many_batches(Path(folder))
        conditions(root)
        page(root)


def load_time() -> None:
    """Measure imports in fresh processes, Dagster's own and the graph's in turn."""
    own, whole = [], []
    for _ in range(ROUNDS):
        own.append(_seconds("dagster"))
        whole.append(_seconds("dagster_project.definitions"))
    added = [b - a for a, b in zip(own, whole, strict=True)]
    record(
        "graph_load_seconds",
        statistics.median(added),
        unit="s added to Dagster's own load",
        goal=2.0,
        better="lower",
        compared_with=f"import dagster alone, {statistics.median(own):.2f} s",
        spread=f"median of {ROUNDS} pairs, {min(added):.2f} .. {max(added):.2f}",
        note="wall time on a quiet machine; no torch, no Spark, no JVM, no network",
        packages=PACKAGES,
    )


def _seconds(module: str) -> float:
    words = [sys.executable, "-W", "ignore", "-c", _IMPORT.format(module)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def tick(folder: Path) -> None:
    """Measure the drop sensor: all files new, then one more."""
    inbox = folder / "inbox"
    for number in range(NUM_FILES):
        place = inbox / f"{number // 1000:03d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"{number}.png").touch()
    recipe = load_recipe("default").model_dump(mode="json")
    watch = {"name": "inbox", "path": str(inbox), "settle_seconds": 0}
    recipe["operations"]["watch"] = [watch | {"max_files_per_batch": 50_000}]
    root = Root.create(folder / "root")
    Request(recipe=recipe).save(root)
    first, data = _tick(root, None)
    assert len(data.run_requests) == 2
    (inbox / "more.png").touch()
    second, data = _tick(root, data.cursor)
    record(
        "sensor_tick_100k_files",
        first,
        unit="s",
        goal=60.0,
        better="lower",
        compared_with="one tick that registers 100,000 new files as two batches",
        spread="one run",
        note=f"a later tick with one more file: {second:.1f} s",
        packages=PACKAGES,
    )


def _tick(root: Root, cursor: str | None) -> tuple[float, dg.SensorExecutionData]:
    project = Project(root_path=str(root.path))
    sensor = build_definitions(project).get_repository_def().get_sensor_def("new_drops")
    with open_instance(root) as instance:
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"project": project}
        )
        began = time.perf_counter()
        data = sensor.evaluate_tick(context)
        return time.perf_counter() - began, data


def many_batches(folder: Path) -> Root:
    """Return a root that was asked for 10,000 batches, two assets of each materialized."""
    root = Root.create(folder / "root")
    names = [f"inbox-{number:05d}" for number in range(NUM_BATCHES)]
    batches = tuple(BatchRequest(name=n, role="pool", source=f"/data/{n}") for n in names)
    recipe = load_recipe("default").model_dump(mode="json")
    Request(recipe=recipe, batches=batches).save(root)
    with open_instance(root) as instance:
        instance.add_dynamic_partitions("ingest_batch", names)
        for asset in ("samples", "training_pack"):
            _materialized(instance, asset, names)
    return root


def _materialized(instance: dg.DagsterInstance, asset: str, names: list[str]) -> None:
    """Put a materialization of each partition into the history: one for real, copies of it else.

    One by one they would take minutes, and what is measured here is reading.
    """
    first = dg.AssetMaterialization(asset, partition=names[0], metadata={"written": 1})
    instance.report_runless_asset_event(first)
    events = SqlEventLogStorageTable
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        newest = events.select().order_by(events.c.id.desc()).limit(1)
        row = dict(connection.execute(newest).mappings().one())
        del row["id"]
        copies = [
            row | {"partition": name, "event": row["event"].replace(names[0], name)}
            for name in names[1:]
        ]
        connection.execute(events.insert(), copies)


def conditions(root: Root) -> None:
    """Measure how long a look at all conditions takes, the first and a later one."""
    definitions = build_definitions(Project(root_path=str(root.path)))
    selection = dg.AssetSelection.groups("ingest", "curate", "annotate")
    with open_instance(root) as instance:
        seconds, cursor = [], None
        for _ in range(2):
            began = time.perf_counter()
            result = dg.evaluate_automation_conditions(
                definitions, instance, asset_selection=selection, cursor=cursor
            )
            cursor = result.cursor
            seconds.append(time.perf_counter() - began)
    record(
        "graph_conditions_10k_batches",
        seconds[1],
        unit="s",
        goal=30.0,
        better="lower",
        compared_with="a look at the conditions of all assets of 10,000 batches",
        spread=f"the later of two; the first took {seconds[0]:.1f} s",
        note="the sensor looks every 30 s",
        packages=PACKAGES,
    )


def page(root: Root) -> None:
    """Measure what the page asks, of a real server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        command(port),
        env=environment(root, home_of(root)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_ordinary_signals,
    )
    try:
        _wait(port)
        found = {name: _asked(port, query) for name, query in QUERIES.items()}
    finally:
        _stop([server])
    slowest = max(found, key=lambda name: found[name])
    record(
        "graph_page_10k_partitions",
        found[slowest],
        unit="s",
        goal=2.0,
        better="lower",
        compared_with=f"the slowest of what an asset's page asks for 10,000 batches: {slowest}",
        spread=f"median of {ROUNDS} each",
        note="; ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items()),
        packages=PACKAGES,
    )


def _asked(port: int, query: str) -> float:
    variables = {"k": {"path": ["samples"]}} if "$k" in query else {}
    body = json.dumps({"query": query, "variables": variables}).encode()
    seconds = []
    for _ in range(ROUNDS):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
        )
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=120) as answer:
            found = json.load(answer)
        seconds.append(time.perf_counter() - began)
        assert "errors" not in found, found
    return statistics.median(seconds)


def _wait(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5).read()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the page did not come up")


if __name__ == "__main__":
    os.environ.pop("AMBIENT_OMNI_DAGSTER_HOME", None)
    main()

"""Jobs that are killed before each of their durable steps, and run once more to their end."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.ids import sample_id_of
from schemas.root import Root
from tests.data.pictures import encoded, put, stored_bytes
from tests.faults.kill_points import NUM_TASKS

BEGUN = re.compile(r"^open shards/b/\.(.+)\.partial$|^task (\d+)$", re.M)


@dataclass
class Killed:
    """One root: what a reader saw behind the kill, and behind the run that followed."""

    root: Path

    def told(self, when):
        return json.loads(self.root.with_suffix(f".{when}.json").read_text())

    @property
    def begun(self):
        """How often each piece of work was begun, by both runs together."""
        found = BEGUN.findall(self.root.with_suffix(".log").read_text())
        return Counter(shard or task for shard, task in found)

    @property
    def shards(self):
        return {
            path.name: path.read_bytes()
            for path in (self.root / "shards").rglob("*.*")
            if path.name != "ingest.json"  # which says how many rows the last run wrote
        }


def killed_everywhere(scenario, folder):
    """Run the scenario's job once for each of its steps; the last run was not killed."""
    command = [sys.executable, "-m", "tests.faults.kill_points", scenario, str(folder)]
    subprocess.run(command, check=True)
    return [Killed(path) for path in sorted(folder.glob("[0-9][0-9][0-9]"))]


@pytest.fixture(params=["ingest", "ingest of a changed source"])
def ingests(request, tmp_path):
    for number in range(6):
        put(tmp_path / f"first/{number}.png", encoded(number))
    for number in (1, 2, 3, 4, 9):
        put(tmp_path / f"second/{number}.png", encoded(number))
    put(tmp_path / "first/page.png", "<html>")
    return killed_everywhere(request.param, tmp_path)


def assert_whole_at_every_step(runs):
    """Readers see each table as it was or as it is to be; the next run leaves what was wanted."""
    before, wanted = runs[0].told("killed"), runs[-1].told("again")
    assert len(runs) > 20
    for one in runs:
        seen = one.told("killed")
        assert seen["damage"] == []
        for name, rows in wanted["rows"].items():
            assert seen["rows"].get(name, []) in (before["rows"].get(name, []), rows)
        assert one.told("again") == wanted  # also the versions: no commit was made twice
    assert before["rows"] != wanted["rows"]


@pytest.mark.slow
def test_an_ingest_killed_at_any_step_leaves_whole_tables_and_the_next_run_the_same_rows(ingests):
    assert_whole_at_every_step(ingests)
    whole = ingests[-1]
    for one in ingests:
        assert one.shards == whole.shards
        assert (one.begun - whole.begun).total() <= 1  # of the shards, one at most is made again
    rows = Root.open(whole.root).tables.read("samples").to_pylist()
    assert len(rows) >= 5
    for row in rows:
        assert sample_id_of(stored_bytes(Root(whole.root), row)) == row["sample_id"]


@pytest.mark.slow
def test_a_job_killed_at_any_step_keeps_its_finished_tasks_and_commits_once(tmp_path):
    runs = killed_everywhere("tasks and their commit", tmp_path)
    assert_whole_at_every_step(runs)
    for one in runs:
        assert set(one.begun) == {str(number) for number in range(NUM_TASKS)}
        assert one.begun.total() <= NUM_TASKS + 1
        assert not list((one.root / "work/receipts").iterdir())

"""A full disk at each stage at which a job writes: the old version stays, a restart finishes.

The limit is the operating system's own, on the size of a file, in a process of its own.
"""

import subprocess
import sys

import pytest

from schemas.repair import check
from schemas.root import Root
from tests.schemas.test_tables import NAME, commit, rows_of

# Files larger than the limit cannot be written (EFBIG, as ENOSPC an OSError at the write).
SCRIPT = """
import resource, signal, sys
import numpy as np
import pyarrow as pa
from schemas.registry import contract
from schemas.root import Root

root, stage, limit = Root.open(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rows = pa.table(
    {"reference_set": ["x"] * 20_000, "sample_row": np.random.permutation(10**6)[:20_000],
     "role": ["trusted"] * 20_000},
    schema=contract("reference_sets").arrow_schema,
)
plain = type(root.tables)._log

def full(*_):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def log(self, *arguments):
    full()
    return plain(self, *arguments)

if stage == "data":
    full()
else:
    type(root.tables)._log = log
root.tables.commit(
    "reference_sets", rows, slice={"reference_set": "x"}, inputs={"n": 2}, job="test"
)
"""


@pytest.mark.parametrize(("stage", "limit"), [("data", 0), ("data", 9000), ("log", 0), ("log", 50)])
def test_a_full_disk_leaves_the_table_at_its_last_version_and_a_restart_finishes(
    root, stage, limit
):
    commit(root, [1, 2], "x")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root.path), stage, str(limit)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    again = Root.open(root.path)
    assert again.tables.version(NAME) == 0
    assert rows_of(again) == [1, 2]
    assert check(again.tables, read_all=True) == []
    commit(again, [3], "x", {"n": 2})
    assert rows_of(again) == [3]

"""The web page: a real server, a real browser."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ambient_omni import rng
from dagster_project.steps import STEPS
from tests.data.browser import CHROMIUM, QUIET, needs_browser

pytestmark = pytest.mark.slow

FLAGS = (*QUIET, "--virtual-time-budget=20000", "--window-size=1600,1000")
LOCATION = "dagster_project.definitions"
ASSETS = """{ assetNodes { assetKey { path } partitionKeys
  assetMaterializations(limit: 1) { partition metadataEntries { label } } } }"""
LAUNCH = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } } }"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def write_images(folder, count, purpose):
    folder.mkdir()
    noise = rng.generator(0, purpose).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")


class Page:
    """The served page of one root."""

    def __init__(self, url):
        self.url = url

    def ask(self, query, **variables):
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    def wait(self, process):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"{self.url}/server_info", timeout=5).read()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise TimeoutError(self.url)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A root that ran until the reference sets, and its page."""
    folder = tmp_path_factory.mktemp("ui")
    write_images(folder / "pool", 8, "ui-pool")
    write_images(folder / "reference", 60, "ui-reference")
    arguments = ["--source", folder / "pool", "--reference", folder / "reference"]
    run = ["run", "--root", folder / "root", *arguments, "--until", "references"]
    # A process of its own: what another test's runs left in this one's orchestrator stays there.
    subprocess.run(
        [sys.executable, "-m", "dagster_project.cli", *map(str, run)], check=True, timeout=300
    )
    with serving(folder / "root") as page:
        page.root = folder / "root"
        yield page


@contextmanager
def serving(root, *flags):
    """Serve a root's page as a person does; everything has ended afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "dagster_project.cli", "ui", "--root", root, *flags]
    process = subprocess.Popen(
        [*map(str, command), "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    page = Page(f"http://127.0.0.1:{port}")
    try:
        page.wait(process)
        yield page
    finally:
        children = children_of(process.pid)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0
    assert [pid for pid in children if alive(pid)] == []


def test_the_graph_shows_what_the_command_line_did(served):
    nodes = {n["assetKey"]["path"][-1]: n for n in served.ask(ASSETS)["assetNodes"]}
    wanted = [step for step in STEPS if step.only_for is None]  # the recipe has no windows
    assert set(nodes) == {name for step in wanted for name in step.assets}
    assert sorted(nodes["samples"]["partitionKeys"]) == ["pool", "reference"]
    assert sorted(nodes["trained_models"]["partitionKeys"]) == [
        "annotated",
        "everything",
        "only_reference",
    ]
    done = nodes["samples"]["assetMaterializations"]
    labels = {entry["label"] for entry in done[0]["metadataEntries"]}
    assert {"dagster/row_count", "table_version", "preview", "seconds"} <= labels
    assert nodes["reference_sets"]["assetMaterializations"]
    assert not nodes["report"]["assetMaterializations"]


def test_a_person_can_materialize_a_batch_again(served):
    params = {
        "mode": "default",
        "selector": {
            "repositoryLocationName": LOCATION,
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["samples"]}],
        },
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "pool"}]},
        "runConfigData": "{}",
    }
    answer = served.ask(LAUNCH, p=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    assert status_at_end(served, answer["run"]["runId"]) == "SUCCESS"


def test_a_person_brings_in_a_batch_from_the_launchpad(served):
    write_images(served.root.parent / "cats", 3, "ui-cats")
    config = {"name": "cats", "source": str(served.root.parent / "cats"), "until": "ingest"}
    params = {
        "mode": "default",
        "selector": {
            "repositoryLocationName": LOCATION,
            "repositoryName": "__repository__",
            "pipelineName": "new_batch",
        },
        "runConfigData": {"ops": {"bring_in_batch": {"config": config}}},
    }
    answer = served.ask(LAUNCH, p=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    assert status_at_end(served, answer["run"]["runId"]) == "SUCCESS"
    nodes = {n["assetKey"]["path"][-1]: n for n in served.ask(ASSETS)["assetNodes"]}
    assert "cats" in nodes["samples"]["partitionKeys"]
    assert nodes["samples"]["assetMaterializations"][0]["partition"] == "cats"


def status_at_end(served, run_id):
    end, status = time.monotonic() + 240, ""
    while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < end:
        time.sleep(0.5)
        status = served.ask(RUN, id=run_id)["runOrError"]["status"]
    return status


def test_the_server_listens_on_this_machine_alone(served):
    port = int(served.url.rsplit(":", 1)[1])
    with socket.socket() as outside:
        outside.settimeout(2)
        assert outside.connect_ex((own_address(), port)) != 0


@needs_browser
def test_a_browser_draws_the_lineage(served, tmp_path):
    address = f"{served.url}/assets/report?view=lineage&lineageScope=upstream&lineageDepth=12"
    dom = browse(address, tmp_path, "--dump-dom")
    for name in ("samples", "noise_annotations", "trained_models", "heldout_evaluation"):
        assert name in dom
    assert "Join the" not in dom  # no dialog covers the page
    shot = tmp_path / "lineage.png"
    browse(address, tmp_path, f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (1000, 1600, 3)
    # Green is what was materialized; most of the page is quiet.
    green = (pixels[..., 1] > pixels[..., 0].astype(int) + 40) & (pixels[..., 1] > 120)
    assert green.sum() > 100


@needs_browser
def test_a_browser_shows_what_happens_by_itself(served, tmp_path):
    dom = browse(f"{served.url}/automation", tmp_path, "--dump-dom")
    for name in ("new_drops", "nightly_rescore", "classifier_candidate", "tell_of_failures"):
        assert name in dom
    job = f"{served.url}/locations/{LOCATION}/jobs/new_batch/playground"
    assert "bring_in_batch" in browse(job, tmp_path, "--dump-dom")


@needs_browser
def test_a_browser_shows_columns_with_their_meaning(served, tmp_path):
    dom = browse(f"{served.url}/assets/samples?view=overview", tmp_path, "--dump-dom")
    assert "SHA-256 of the source bytes" in dom
    assert "non-nullable" in dom


def browse(url, folder, *flags):
    profile = folder / f"profile-{time.monotonic_ns()}"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        return probe.getsockname()[0]


def children_of(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nPPid:\t{pid}\n" in text:
            child = int(status.parent.name)
            found += [child, *children_of(child)]
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()

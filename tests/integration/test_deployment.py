"""deploy/ without containers: the same settings and commands, on this machine's loopback.

PostgreSQL holds the history, an S3-compatible server drops and logs, and a standalone Spark master
with two workers scores. What compose.yaml says is read from it, not said again here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from dagster_project.recipe import parse_recipe
from dagster_project.request import Request
from schemas.root import Root
from tests.data.weeks import RECIPE, write_images
from tests.integration.test_ui import Page, free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
POSTGRES = shutil.which("initdb") or shutil.which("initdb", path="/usr/lib/postgresql/15/bin")
SECRETS = {
    "AMBIENT_OMNI_PG_PASSWORD": "pg-7d1f-secret",
    "AWS_ACCESS_KEY_ID": "key-51ac-secret",
    "AWS_SECRET_ACCESS_KEY": "aws-90be-secret",
    "AMBIENT_OMNI_WEBHOOK": "http://127.0.0.1:9/hook-2c44-secret",
}
SENSOR = """mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename
  ... on PythonError { message } } }"""
RUNS = """{ runsOrError { ... on Runs { results { runId status jobName } } } }"""
INSTANCE = "{ instance { info } }"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(POSTGRES is None, reason="no PostgreSQL: apt-get install postgresql"),
]


class Machine:
    """Everything that compose.yaml starts, as processes of this machine."""

    def __init__(self, home):
        self.home = home
        self.processes = {}
        self.compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        self.ports = {
            name: free_port()
            for name in ("postgres", "storage", "master", "master_page", "code", "web")
        }
        self.environment = os.environ | self._of_compose() | {
            # A machine's own, where containers have names of their own.
            "DAGSTER_HOME": str(home / "dagster"),
            "AMBIENT_OMNI_DAGSTER_HOME": str(home / "dagster"),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": sys.executable,
            "PYTHONWARNINGS": "ignore",
        }  # fmt: skip

    def _of_compose(self):
        """Return the environment of the code server with addresses of this machine."""
        here = {
            "AMBIENT_OMNI_ROOT": str(self.home / "root"),
            "AMBIENT_OMNI_SPARK_MASTER": f"spark://127.0.0.1:{self.ports['master']}",
            "AMBIENT_OMNI_CODE_HOST": "127.0.0.1",
            "AMBIENT_OMNI_CODE_PORT": str(self.ports["code"]),
            "AMBIENT_OMNI_PG_HOST": "127.0.0.1",
            "AMBIENT_OMNI_PG_PORT": str(self.ports["postgres"]),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['storage']}",
        }
        found = self.compose["services"]["code"]["environment"]
        plain = {name: value for name, value in found.items() if "$" not in str(value)}
        assert {*here, *SECRETS} <= set(found)
        return plain | here | SECRETS

    def command_of(self, service, **changes):
        """Return a service's command with words of this machine in place of some."""
        words = self.compose["services"][service]["command"]
        return [changes.get(str(word), str(word)) for word in words]

    def start(self, name, words):
        program = {"python": [sys.executable], "dagster": [sys.executable, "-m", "dagster"]}
        program["dagster-daemon"] = [sys.executable, "-m", "dagster._daemon"]
        program["dagster-webserver"] = [sys.executable, "-m", "dagster_webserver"]
        words = [*program[words[0]], *words[1:]]
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words, env=self.environment, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip

    def stop(self, name):
        process = self.processes.pop(name)
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            process.kill()
        process.wait()

    def stop_all(self):
        for name in reversed(list(self.processes)):
            self.stop(name)

    def wait_for(self, condition, what, seconds=240):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not dead, f"{dead}: {(self.home / f'{dead[0]}.log').read_text()[-2000:]}"
            try:
                if found := condition():
                    return found
            except (OSError, ValueError):  # it does not answer yet
                pass
            time.sleep(0.3)
        raise TimeoutError(what)

    def cluster(self):
        """Return what Spark's master says of itself."""
        address = f"http://127.0.0.1:{self.ports['master_page']}/json/"
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL of our own in a folder of its own user; it does not run as root."""
    bin_, port = Path(POSTGRES).resolve().parent, free_port()
    folder = Path(tempfile.mkdtemp(prefix="ambient-omni-pg-"))
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    password = folder / "password"
    password.write_text(SECRETS["AMBIENT_OMNI_PG_PASSWORD"])
    password.chmod(0o644)
    data = ["-D", str(folder / "data")]

    def run(program, *words):
        subprocess.run([*as_user, bin_ / program, *data, *words], check=True, cwd="/",
                       stdout=subprocess.DEVNULL)  # fmt: skip

    auth = ("-A", "scram-sha-256", f"--pwfile={password}", "--no-sync", "--locale=C")
    run("initdb", "-U", "dagster", "-E", "UTF8", *auth)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
    run("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        connection = connect(port, "postgres")
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE dagster")
        connection.close()
        yield port
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def connect(port, database="dagster"):
    import psycopg2

    return psycopg2.connect(
        host="127.0.0.1", port=port, dbname=database, user="dagster",
        password=SECRETS["AMBIENT_OMNI_PG_PASSWORD"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def machine(postgres, tmp_path_factory):
    home = tmp_path_factory.mktemp("deployment")
    (home / "dagster").mkdir()
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(DEPLOY / name, home / "dagster" / name)
    watch = {"name": "inbox", "path": "s3://drops/inbox", "settle_seconds": 0, "until": "score"}
    recipe = parse_recipe(RECIPE | {"operations": {"watch": [watch]}}, "deployment")
    Request(recipe=recipe.model_dump(mode="json")).save(Root.create(home / "root"))
    found = Machine(home)
    found.ports["postgres"] = postgres
    found.environment["AMBIENT_OMNI_PG_PORT"] = str(postgres)
    try:
        start_all(found)
        yield found
    finally:
        found.stop_all()


def start_all(machine):
    ports = {name: str(port) for name, port in machine.ports.items()}
    storage = ["python", "-m", "moto.server", "-H", "127.0.0.1", "-p", ports["storage"]]
    machine.start("storage", storage)  # in place of MinIO
    master = machine.command_of("spark-master", **{"spark-master": "127.0.0.1"})
    machine.start(
        "master", [*master, "--port", ports["master"], "--page-port", ports["master_page"]]
    )
    address = machine.environment["AMBIENT_OMNI_SPARK_MASTER"]
    worker = machine.command_of("spark-worker", **{"spark://spark-master:7077": address})
    size = ["--host", "127.0.0.1", "--cores", "1", "--memory", "1g", "--page-port", "0"]
    for number in (1, 2):
        work = str(machine.home / f"worker-{number}")
        machine.start(f"worker-{number}", [*worker, *size, "--work-dir", work])
    subprocess.run(
        [sys.executable, *machine.command_of("buckets")[1:]], env=machine.environment, check=True
    )
    code = machine.command_of("code", **{"0.0.0.0": "127.0.0.1", "4000": ports["code"]})
    machine.start("code", code)
    workspace = {"/opt/dagster/workspace.yaml": str(machine.home / "dagster" / "workspace.yaml")}
    here = workspace | {"0.0.0.0": "127.0.0.1", "3000": ports["web"]}
    machine.start("web", machine.command_of("web", **here))
    machine.start("daemon", machine.command_of("daemon", **workspace))
    machine.page = Page(f"http://127.0.0.1:{ports['web']}")
    machine.page.wait(machine.processes["web"])
    machine.wait_for(lambda: machine.cluster()["aliveworkers"] == 2, "two workers")


def test_a_drop_in_the_store_is_scored_on_the_cluster_and_its_run_stands_in_postgresql(machine):
    import s3fs

    drops = machine.home / "drops"
    write_images(drops, 24, "deployment-drop", blur=1.5)
    keys = {name: SECRETS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    store = s3fs.S3FileSystem(
        key=keys["AWS_ACCESS_KEY_ID"],
        secret=keys["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=machine.environment["AWS_ENDPOINT_URL"],
    )
    store.put(str(drops) + "/", "drops/inbox/", recursive=True)
    machine.wait_for(lambda: turn_on(machine, "new_drops"), "the sensor's switch")
    run = machine.wait_for(lambda: ended(machine), "the batch's run", 400)
    assert run["status"] == "SUCCESS", (machine.home / "code.log").read_text()[-4000:]

    tables = Root.open(machine.home / "root").tables
    assert tables.read("scores/classical", where={"ingest_batch": "inbox-00000"}).num_rows == 24
    done = machine.wait_for(lambda: machine.cluster()["completedapps"], "the driver to leave")
    assert {app["name"] for app in done} == {"ambient-omni"}
    assert max(app["cores"] for app in done) == 2  # both workers had an executor
    with connect(machine.ports["postgres"]) as history, history.cursor() as cursor:
        cursor.execute("SELECT status FROM runs WHERE run_id = %s", (run["runId"],))
        assert cursor.fetchall() == [("SUCCESS",)]
        cursor.execute("SELECT count(*) FROM event_logs")
        assert cursor.fetchone()[0] > 20
        cursor.execute("SELECT partition FROM dynamic_partitions ORDER BY 1")
        assert ("inbox-00000",) in cursor.fetchall()
    logs = store.find("logs")
    assert [name for name in logs if run["runId"] in name]
    told = everything_told(machine, store, logs)
    assert [place for place, text in told.items() if run["runId"].encode() in text]
    for name, secret in SECRETS.items():
        telling = [place for place, text in told.items() if secret.encode() in text]
        assert not telling, f"{name} stands in {telling[:3]}"


def turn_on(machine, sensor):
    where = {
        "repositoryLocationName": "ambient-omni",
        "repositoryName": "__repository__",
        "sensorName": sensor,
    }
    return machine.page.ask(SENSOR, s=where)["startSensor"]["__typename"] == "Sensor"


def ended(machine):
    """Return the first run of `new_batch` that ended."""
    for run in machine.page.ask(RUNS)["runsOrError"]["results"]:
        if run["jobName"] == "new_batch" and run["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
            return run
    return None


def everything_told(machine, store, logs):
    """Return what page, history, logs and the root say, by place."""
    told = {"page": json.dumps(machine.page.ask(INSTANCE)).encode()}
    told |= {name: store.cat(name) for name in logs}
    told |= {str(file): file.read_bytes() for file in machine.home.glob("*.log")}
    told |= {str(file): file.read_bytes() for file in machine.home.glob("root/*.json")}
    told |= {str(f): f.read_bytes() for f in machine.home.glob("worker-*/*/*/std*")}
    with connect(machine.ports["postgres"]) as history, history.cursor() as cursor:
        for table, column in (
            *(("runs", "run_body"), ("event_logs", "event"), ("run_tags", "value")),
            *(("jobs", "job_body"), ("job_ticks", "tick_body"), ("snapshots", "snapshot_body")),
        ):
            cursor.execute(f"SELECT {column} FROM {table}")
            for number, (value,) in enumerate(cursor.fetchall()):
                told[f"{table} {number}"] = _bytes(value)
    return told


def _bytes(value):
    import zlib

    if isinstance(value, str):
        return value.encode()
    try:
        return zlib.decompress(bytes(value))
    except zlib.error:
        return bytes(value)


def test_a_daemon_that_starts_again_takes_no_drop_twice(machine):
    machine.stop("daemon")
    workspace = {"/opt/dagster/workspace.yaml": str(machine.home / "dagster" / "workspace.yaml")}
    machine.start("daemon", machine.command_of("daemon", **workspace))
    before = len(machine.page.ask(RUNS)["runsOrError"]["results"])
    ticks = """query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor {
      sensorState { ticks(limit: 3) { status skipReason timestamp } } } } }"""
    where = {
        "repositoryLocationName": "ambient-omni",
        "repositoryName": "__repository__",
        "sensorName": "new_drops",
    }
    began = time.time()

    def ticked():
        found = machine.page.ask(ticks, s=where)["sensorOrError"]["sensorState"]["ticks"]
        return [t for t in found if t["timestamp"] > began and t["status"] == "SKIPPED"]

    (tick, *_) = machine.wait_for(ticked, "a tick of the new daemon", 120)
    assert tick["skipReason"] == "nothing new"
    assert len(machine.page.ask(RUNS)["runsOrError"]["results"]) == before

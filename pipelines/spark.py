"""One Spark session a process, started when there is work, quiet and on loopback."""

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ambient_omni.progress import progress
from pipelines.java import cache_dir, ensure_java, write_once
from schemas.errors import AmbientOmniError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Task = TypeVar("Task")
Result = TypeVar("Result")

MASTER_VARIABLE = "AMBIENT_OMNI_SPARK_MASTER"
_POLL_SECONDS = 0.2
# `local[N]` alone never tries a task again; the second number is the tries.
_TASK_TRIES = 3
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# C1 alone and the serial collector halve the start; no Spark job here computes inside the JVM.
_FAST_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData"
_LOG4J = """rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n
logger.tasks.name = org.apache.spark.scheduler.TaskSetManager
logger.tasks.level = off
logger.executor.name = org.apache.spark.executor.Executor
logger.executor.level = off
"""
# How a Python worker ends that Spark closed because it was idle; the traceback of anything else
# goes through.
_IDLE_FRAME = re.compile(
    r"Traceback \(most recent call last\):$|  File .*pyspark/daemon\.py\", line"
)
_HARMLESS = re.compile(
    r"^(WARNING: (Using incubator modules|package sun\.security\.action not in java\.base"
    r"|A (restricted|terminally deprecated) method|java\.lang\.System::load|Use --enable-native"
    r"|Restricted methods|sun\.misc\.Unsafe|Please consider reporting).*"
    r"|Using Spark's default log4j profile.*|Setting default log level to.*"
    r"|To adjust logging level use.*|)\n?$"
)


class SparkSettings(BaseModel):
    """How to reach Spark. The default is this machine; on a cluster nothing local is forced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    master: str | None = Field(
        default=None, description=f"Spark master URL; None: ${MASTER_VARIABLE}, else this machine"
    )
    num_cores: int | None = Field(default=None, ge=1, description="local tasks; None: every core")
    driver_memory: str = Field(default="768m", description="heap of the local JVM")
    conf: dict[str, str] = Field(default_factory=dict, description="more Spark settings")

    @property
    def resolved_master(self) -> str:
        """The master URL that a session will use."""
        master = self.master or os.environ.get(MASTER_VARIABLE)
        return master or f"local[{self.num_cores or _usable_cores()},{_TASK_TRIES}]"


class TasksFailed(AmbientOmniError):
    """A task failed on every try; nothing of the job is visible."""


_lock = threading.Lock()


def get_session(settings: SparkSettings | None = None) -> "SparkSession":
    """Return this process's session and start it if there is none; the first settings win.

    Raises:
        JavaMissing: no Java was found on this machine.
    """
    from pyspark.sql import SparkSession

    with _lock:
        active = SparkSession.getActiveSession()
        return active if active is not None else _start(settings or SparkSettings())


def _start(settings: SparkSettings) -> "SparkSession":
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    conf = SparkConf().setAppName("ambient-omni")
    if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit started us: its settings stand
        context = SparkContext.getOrCreate(conf)
    else:
        ensure_java()
        for key, value in _conf_of(settings).items():
            conf.set(key, value)
        context = _hold_interrupts(lambda: SparkContext(conf=conf, gateway=_quiet_gateway(conf)))
    context.setLogLevel("ERROR")
    return SparkSession(context)


def _hold_interrupts(start: Callable[[], Any]) -> Any:
    """Start a context; ctrl-C and SIGTERM that come meanwhile count when it has started.

    A JVM whose start is broken off never ends: nobody knows it yet. And a started context takes
    ctrl-C over and talks to the JVM inside the signal handler, which fails when a conversation is
    under way; so the caller's handlers are put back. `run_tasks` cancels its own job.
    """
    if threading.current_thread() is not threading.main_thread():
        return start()
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        return start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _conf_of(settings: SparkSettings) -> dict[str, str]:
    master = settings.resolved_master
    conf = {"spark.master": master, "spark.ui.showConsoleProgress": "false"}
    conf |= {f"spark.executorEnv.{name}": "1" for name in _THREADS}
    if master.startswith("local"):
        log4j = write_once(cache_dir() / "log4j2.properties", _LOG4J)
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        os.environ["PYSPARK_PYTHON"] = sys.executable
        conf |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": settings.driver_memory,
            "spark.driver.extraJavaOptions": f'{_FAST_START} "-Dlog4j2.configurationFile={log4j}"',
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "4",
            "spark.pyspark.python": sys.executable,
            # Over TCP a task waits 40 ms for an acknowledgement that is delayed.
            "spark.python.unix.domain.socket.enabled": "true",
        }
    return conf | settings.conf


def _quiet_gateway(conf: Any) -> Any:
    """Start the JVM with its standard error passed through a filter of known harmless lines."""
    from pyspark.java_gateway import launch_gateway

    gateway = launch_gateway(conf=conf, popen_kwargs={"stderr": subprocess.PIPE})  # type: ignore[no-untyped-call]
    threading.Thread(target=_forward, args=(gateway.proc.stderr,), daemon=True).start()
    return gateway


def _forward(stream: Any) -> None:
    held: list[str] = []
    for line in iter(stream.readline, b""):
        text = line.decode(errors="replace")
        if _IDLE_FRAME.match(text):
            held.append(text)
            continue
        if held and text.startswith("BrokenPipeError"):
            held.clear()
            continue
        if not _HARMLESS.match(text):
            held.append(text)
        sys.stderr.write("".join(held))
        held.clear()
    sys.stderr.write("".join(held))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    tasks: Sequence[Task],
    work: Callable[[Task], Result],
    *,
    label: str,
    weights: Sequence[int] | None = None,
    unit: str = "tasks",
    settings: SparkSettings | None = None,
) -> list[Result]:
    """Run `work` over `tasks` on the executors, one Spark task each; results in task order.

    A failed task is tried again, so `work` must be safe to repeat. Progress counts `weights`
    (the images of each task, say) as tasks end. Without tasks no session is started.

    Raises:
        TasksFailed: a task failed on every try; the message ends with the executor's last line.
    """
    if not tasks:
        return []
    sizes = [1] * len(tasks) if weights is None else list(weights)
    context = get_session(settings).sparkContext
    done = context.accumulator(0)  # counts the ends of successful tries alone

    def run_one(item: tuple[int, Task]) -> Result:
        result = work(item[1])
        done.add(item[0])
        return result

    rdd = context.parallelize(list(zip(sizes, tasks, strict=True)), len(tasks)).map(run_one)
    group = f"{label} {uuid.uuid4().hex[:8]}"

    def collect() -> list[Result]:
        context.setJobGroup(group, label, interruptOnCancel=True)
        return list(rdd.collect())

    with ThreadPoolExecutor(1) as pool, progress(total=sum(sizes), label=label, unit=unit) as bar:
        future = pool.submit(collect)
        try:
            while wait([future], timeout=_POLL_SECONDS).not_done:
                bar.update(done.value - bar.n)
        except BaseException:  # ctrl-C: stop the executors before anything is cleaned up
            context.cancelJobGroup(group)
            raise
        return _result_of(future, label)


def _result_of(future: "Future[list[Result]]", label: str) -> list[Result]:
    from py4j.protocol import Py4JError  # type: ignore[import-untyped]
    from pyspark.errors import PySparkException

    try:
        return future.result()
    except (Py4JError, PySparkException) as error:
        raise TasksFailed(f"{label}: {_last_python_line(str(error))}") from error


def _last_python_line(text: str) -> str:
    """The exception's own line out of a Java stack trace around a Python traceback."""
    lines = text.splitlines()
    ends = [n for n, line in enumerate(lines) if line.startswith("\tat ") and n > 0]
    head = lines[: ends[0]] if ends else lines
    said = [line.strip() for line in head if line.strip()]
    return said[-1] if said else "an executor failed without a message"

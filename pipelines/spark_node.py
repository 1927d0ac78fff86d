"""``python -m pipelines.spark_node master|worker``: a node of a standalone Spark cluster.

Made of pyspark's own jars and the Java that every session here uses; no Spark distribution needs to
be installed. The process becomes the node: whoever starts it stops it by SIGTERM.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.java import JavaMissing, ensure_java

_PACKAGE = "org.apache.spark.deploy"


def main(arguments: Sequence[str] | None = None) -> int:
    """Become a node; returns only if that cannot be."""
    options = _parser().parse_args(arguments)
    try:
        ensure_java()
    except JavaMissing as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    words = master(options) if options.kind == "master" else worker(options)
    environment = os.environ | {"SPARK_HOME": str(_home())}
    # What a finished job left behind in a worker's folder goes by itself.
    environment.setdefault("SPARK_WORKER_OPTS", "-Dspark.worker.cleanup.enabled=true")
    # Nobody submits programs here but drivers that connect; the other door has no lock.
    environment.setdefault("SPARK_MASTER_OPTS", "-Dspark.master.rest.enabled=false")
    os.execve(words[0], words, environment)  # noqa: S606 - fixed words, no shell


def master(options: argparse.Namespace) -> list[str]:
    """Return the words of a master's command."""
    place = ["--host", options.host, "--port", str(options.port)]
    return [_spark_class(), f"{_PACKAGE}.master.Master", *place, *_page(options)]


def worker(options: argparse.Namespace) -> list[str]:
    """Return the words of a worker's command."""
    size = [] if options.cores is None else ["--cores", str(options.cores)]
    size += [] if options.memory is None else ["--memory", options.memory]
    host = [] if options.host is None else ["--host", options.host]
    work = ["--work-dir", str(options.work_dir)]
    words = [_spark_class(), f"{_PACKAGE}.worker.Worker", *host, *size, *work, *_page(options)]
    return [*words, options.master]


def _page(options: argparse.Namespace) -> list[str]:
    return ["--webui-port", str(options.page_port)]


def _spark_class() -> str:
    return str(_home() / "bin" / "spark-class")


def _home() -> Path:
    import pyspark

    return Path(pyspark.__file__).parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("master", help="hands executors to drivers")
    one.add_argument("--host", required=True, help="name or address that the others know it by")
    one.add_argument("--port", type=int, default=7077)
    one.add_argument("--page-port", type=int, default=8080, help="of its web page")
    other = kinds.add_parser("worker", help="starts executors on this machine")
    other.add_argument("--master", required=True, help="spark://HOST:PORT")
    other.add_argument("--host", help="name or address of this machine (default: its own name)")
    other.add_argument("--cores", type=int, help="to hand out (default: all)")
    other.add_argument("--memory", help="to hand out, for example 8g (default: all but 1 GB)")
    other.add_argument("--page-port", type=int, default=8081, help="of its web page")
    other.add_argument(
        "--work-dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "spark-work",
        help="executors' logs and files",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

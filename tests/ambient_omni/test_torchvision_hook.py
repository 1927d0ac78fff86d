"""A torchvision whose compiled part is of another build, made small: it fails as the real does."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

# What torchvision does on import: a fake kernel for an operator that its compiled part declares.
FOREIGN_BUILD = """
from torch import library
library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
transforms = "whole"
"""


@pytest.fixture
def run(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(FOREIGN_BUILD)
    (package / "_C.so").write_bytes(b"of another build")
    repository = str(Path(__file__).parents[2])
    # At the end of the path: a backport among the packages must not hide the standard library's.
    packages = f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r})\n"

    def start(code):
        return subprocess.run(
            # Without start-up files: `make setup` puts the hook there too.
            [sys.executable, "-S", "-c", packages + code],
            env={"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def test_a_foreign_build_fails_by_itself_and_is_whole_behind_the_package(run):
    alone = run("import torchvision")
    assert "torchvision::nms does not exist" in alone.stderr
    for package in ("ambient_omni", "pipelines"):
        behind = run(f"import {package}, torchvision; print(torchvision.transforms)")
        assert (behind.returncode, behind.stdout) == (0, "whole\n"), behind.stderr


def test_asking_whether_it_is_there_imports_nothing(run):
    code = (
        "import sys, importlib.util, ambient_omni\n"
        "assert importlib.util.find_spec('torchvision').name == 'torchvision'\n"
        "assert 'torch' not in sys.modules"
    )
    assert run(code).stderr == ""


def test_installing_twice_puts_one_finder_in_front(run):
    code = (
        "import sys, ambient_omni\n"
        "from ambient_omni import torchvision_hook\n"
        "torchvision_hook.install()\n"
        "print([type(f).__name__ for f in sys.meta_path].count('TorchvisionFinder'))"
    )
    assert run(code).stdout == "1\n"

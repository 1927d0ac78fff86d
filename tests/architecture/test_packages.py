import ast
import subprocess
import sys

import pytest

PACKAGES = ("schemas", "ambient_omni", "pipelines", "dagster_project")


@pytest.fixture(scope="module")
def root(pytestconfig):
    return pytestconfig.rootpath


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_it_is_for(root, package):
    readme = root / package / "README.md"
    assert readme.exists()
    assert "Read first" in readme.read_text(encoding="utf-8")


def test_every_test_is_named_by_a_sentence(root):
    for path in (root / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert node.name.count("_") >= 3, f"{path.name}: {node.name} is no sentence"


def test_global_random_state_is_used_nowhere(root):
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            if path.name == "rng.py":
                continue
            text = path.read_text(encoding="utf-8")
            assert "manual_seed" not in text, path
            assert "default_rng" not in text, path


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("schemas", ("torch", "pyspark", "dagster", "diffusers")),
        ("ambient_omni", ("pyspark", "dagster")),
        ("pipelines", ("dagster",)),
    ],
)
def test_a_package_starts_without_what_lies_above_it(package, forbidden):
    code = (
        f"import pkgutil, importlib, sys, {package}\n"
        f"for m in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        f"print([n for n in {forbidden!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

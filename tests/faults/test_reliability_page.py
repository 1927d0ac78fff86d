"""The page of what the system survives names every case, and tests that are there."""

import ast
import re
from functools import cache

import pytest

CASES = range(1, 31)
ROW = re.compile(r"^\| (\d+) \|.*$", re.M)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.fixture
def page(pytestconfig):
    return (pytestconfig.rootpath / "docs" / "reliability.md").read_text(encoding="utf-8")


@cache
def names_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_case_has_a_test_and_a_figure(page):
    rows = {int(found[1]): found[0] for found in ROW.finditer(page)}
    assert sorted(rows) == list(CASES)
    for row in rows.values():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5, row
        assert NAMED.search(cells[3]), row
        assert re.search(r"\d|refused|once|exact|bits", cells[4]), row


def test_every_test_that_is_named_is_there(page, pytestconfig):
    named = set(NAMED.findall(page))
    assert len(named) > len(CASES)
    missing = [f"{p}::{t}" for p, t in named if t not in names_in(pytestconfig.rootpath / p)]
    assert missing == []

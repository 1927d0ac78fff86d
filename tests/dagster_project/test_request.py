import pytest

from dagster_project.request import (
    FILE,
    BatchRequest,
    Request,
    absolute_source,
    batch_name_of,
)
from schemas.errors import BadInput


def batch(name, source="/a", role="pool"):
    return BatchRequest(name=name, role=role, source=source)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/my pool", "my-pool"),
        ("/data/pool/", "pool"),
        ("urls.parquet", "urls"),
        ("/data/reference", "pool-reference"),
        ("/data/猫", "pool"),
        ("/data/{000..009}.tar", "000"),
    ],
)
def test_a_source_names_its_batch(source, name):
    assert batch_name_of(source) == name


def test_a_request_that_was_saved_is_read_back(root):
    request = Request(recipe={"a": 1}, truth="/t.parquet").with_batches([batch("pool")])
    request.save(root)
    assert Request.load(root) == request


def test_a_root_without_a_request_has_none(root):
    assert Request.load(root) is None


def test_a_damaged_request_says_so_in_one_line(root):
    (root.path / FILE).write_text("{")
    with pytest.raises(BadInput, match=FILE) as error:
        Request.load(root)
    assert "\n" not in str(error.value)


def test_asking_for_the_same_batch_again_changes_nothing():
    request = Request(recipe={}).with_batches([batch("pool")])
    assert request.with_batches([batch("pool")]) == request
    with pytest.raises(BadInput, match="batch name 'a/b' cannot be used"):
        request.with_batches([batch("a/b")])


def test_a_name_that_holds_another_source_is_refused():
    request = Request(recipe={}).with_batches([batch("pool")])
    with pytest.raises(BadInput, match="--source-name"):
        request.with_batches([batch("pool", source="/b")])


def test_batches_are_found_by_role_in_order_of_arrival():
    request = Request(recipe={}).with_batches(
        [batch("b"), batch("reference", role="reference"), batch("a")]
    )
    assert request.of_role("pool") == ("b", "a")
    assert request.of_role("reference", "pool") == ("b", "reference", "a")


def test_an_unknown_batch_is_named_with_those_that_are_known():
    with pytest.raises(BadInput, match="there are: pool"):
        Request(recipe={}).with_batches([batch("pool")]).batch("nope")


def test_a_relative_source_means_the_same_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_source("images") == str(tmp_path / "images")

import pyarrow as pa
import pytest

from schemas import dictionary
from schemas.contract import Column, Contract
from schemas.errors import ContractViolation
from schemas.registry import all_contracts, contract

DESIGNED_TABLES = {
    "ingest_batches",
    "ingest_attempts",
    "samples",
    "reference_sets",
    "scores/classical",
    "scores/natural_statistics",
    "scores/safety",
    "scores/clip",
    "embeddings",
    "ood_scores",
    "duplicate_clusters",
    "noise_classifiers",
    "noise_curves",
    "crop_classifiers",
    "crop_scores",
    "receptive_fields",
    "policies",
    "sample_index",
    "scores/external",
    "noise_annotations",
    "training_runs",
    "exclusions",
}


def annotation(**changes):
    row = {
        "sample_row": 1,
        "ingest_batch": "b",
        "policy_id": "p",
        "sigma_min": 0.5,
        "sigma_max": 0.0,
        "noise_space": "pixel",
        "slope": None,
        "sigma_min_standard_error_octaves": None,
        "sigma_min_low": None,
        "sigma_min_high": None,
        "reason": "crossing",
    }
    return row | changes


def test_every_designed_table_has_a_contract():
    assert set(all_contracts()) == DESIGNED_TABLES


@pytest.mark.parametrize("name", sorted(DESIGNED_TABLES))
def test_a_contract_accepts_a_table_of_no_rows(name):
    contract(name).validate(contract(name).empty())


@pytest.mark.parametrize("name", sorted(DESIGNED_TABLES))
def test_the_frozen_dump_is_up_to_date(name):
    frozen = dictionary.frozen_path(contract(name))
    assert frozen.read_text(encoding="utf-8") == dictionary.frozen_dump(contract(name)), (
        "a contract changed: bump its version, then run `make schemas` and look at the diff"
    )


def test_the_data_dictionary_is_up_to_date(pytestconfig):
    kept = (pytestconfig.rootpath / "docs" / "data_dictionary.md").read_text(encoding="utf-8")
    assert kept == dictionary.data_dictionary(), "run `make schemas`"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sigma_min": -0.1}, "sigma_min < 0"),
        ({"sigma_min": float("nan")}, "sigma_min must be finite or null"),
        ({"sigma_min": float("inf")}, "sigma_min must be finite or null"),
        ({"noise_space": None}, "noise_space must not be null"),
        ({"sigma_min_low": 0.6}, "the interval holds sigma_min"),
        ({"sigma_min_high": 0.4}, "the interval holds sigma_min"),
        ({"reason": "because"}, "reason is not one of"),
        ({"sigma_min": None}, "a null sigma_min comes of"),
        ({"reason": "unscored"}, "an unscored sample has no sigma_min"),
        ({"ingest_batch": "a/b"}, "ingest_batch does not match"),
    ],
)
def test_a_bad_annotation_is_refused_by_column_and_row(changes, complaint):
    rows = pa.Table.from_pylist(
        [annotation(), annotation(sample_row=77, **changes)],
        schema=contract("noise_annotations").arrow_schema,
    )
    with pytest.raises(ContractViolation, match=complaint) as refusal:
        contract("noise_annotations").validate(rows)
    assert "77" in str(refusal.value)


def test_a_null_sigma_min_with_a_reason_is_legal():
    row = annotation(sigma_min=None, reason="never_crosses")
    contract("noise_annotations").table([row])


def test_a_repeated_key_is_refused():
    with pytest.raises(ContractViolation, match="stand more than once"):
        contract("noise_annotations").table([annotation(), annotation()])


def test_a_wrong_type_is_refused():
    table = contract("noise_annotations").table([annotation()])
    narrowed = table.set_column(3, "sigma_min", table["sigma_min"].cast(pa.float32()))
    with pytest.raises(ContractViolation, match="sigma_min is float"):
        contract("noise_annotations").validate(narrowed)


def test_a_missing_and_an_unknown_column_are_named():
    table = contract("noise_annotations").table([annotation()])
    drifted = table.rename_columns([n.replace("slope", "slop") for n in table.schema.names])
    with pytest.raises(ContractViolation, match=r"missing \['slope'\], unknown \['slop'\]"):
        contract("noise_annotations").validate(drifted)


@pytest.mark.parametrize("element", [float("nan"), None])
def test_a_bad_element_of_a_list_is_refused(element):
    row = {
        "sample_row": 5,
        "ingest_batch": "b",
        "classifier_id": "c",
        "fold": 0,
        "logits": [0.0, element],
        "logit_standard_error": [0.1, 0.1],
    }
    table = pa.Table.from_pylist([row], schema=contract("noise_curves").arrow_schema)
    with pytest.raises(ContractViolation, match="logits holds a null"):
        contract("noise_curves").validate(table)


def test_a_rejected_attempt_needs_a_reason_and_no_sample_row():
    row = dict.fromkeys(contract("ingest_attempts").names)
    row |= {"ingest_batch": "b", "attempt_key": "k", "source": "s", "source_uri": "u"}
    contract("ingest_attempts").table([row | {"status": "rejected", "reason": "truncated"}])
    for bad in ({"status": "rejected"}, {"status": "stored"}, {"status": "stored", "reason": "x"}):
        with pytest.raises(ContractViolation, match="a rejected item has a reason"):
            contract("ingest_attempts").table([row | bad])


def test_a_nullable_column_must_say_what_null_means():
    with pytest.raises(ValueError, match="null_meaning"):
        Column("x", pa.int64(), "a number", nullable=True)


def test_a_key_must_be_a_column():
    with pytest.raises(ValueError, match="no column"):
        Contract("t", 1, "a row", ("y",), (Column("x", pa.int64(), "a number"),))

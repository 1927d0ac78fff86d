"""All contracts by table name."""

from schemas import (
    crop_classifiers,
    crop_scores,
    duplicate_clusters,
    embeddings,
    exclusions,
    ingest_attempts,
    ingest_batches,
    noise_annotations,
    noise_classifiers,
    noise_curves,
    ood_scores,
    policies,
    receptive_fields,
    reference_sets,
    sample_index,
    samples,
    scores,
    training_runs,
)
from schemas.contract import Contract

_CONTRACTS: dict[str, Contract] = {
    c.name: c
    for c in (
        ingest_batches.CONTRACT,
        ingest_attempts.CONTRACT,
        samples.CONTRACT,
        sample_index.CONTRACT,
        reference_sets.CONTRACT,
        *(scores.contract_for(pack) for pack in scores.PACKS),
        embeddings.CONTRACT,
        ood_scores.CONTRACT,
        duplicate_clusters.CONTRACT,
        noise_classifiers.CONTRACT,
        noise_curves.CONTRACT,
        crop_classifiers.CONTRACT,
        crop_scores.CONTRACT,
        receptive_fields.CONTRACT,
        policies.CONTRACT,
        noise_annotations.CONTRACT,
        training_runs.CONTRACT,
        exclusions.CONTRACT,
    )
}


def contract(name: str) -> Contract:
    """Return the contract of the table `name`; KeyError lists what there is."""
    if name not in _CONTRACTS:
        raise KeyError(f"no table {name!r}; there are {sorted(_CONTRACTS)}")
    return _CONTRACTS[name]


def all_contracts() -> dict[str, Contract]:
    """Return every contract by table name, in the order of the data's way."""
    return dict(_CONTRACTS)

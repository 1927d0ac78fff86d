"""`ambient-omni what-if`: what each policy would train on, without training."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ambient_omni.noise.usable import effective_samples_per_band
from dagster_project.bands import BANDS
from dagster_project.commands.lookup import text_table
from pipelines.references import held_out_sample_ids
from schemas.errors import BadInput
from schemas.root import Root


def what_if(root_path: Path) -> str:
    """Return how many samples each noise band gets under each policy, as text.

    Samples that are held out of training, and their twins in other batches, do not count.

    Raises:
        BadInput: nothing was annotated yet.
    """
    root = Root.open(root_path)
    annotations = root.tables.read(
        "noise_annotations", ["sample_row", "policy_id", "sigma_min", "sigma_max"]
    )
    if not annotations.num_rows:
        raise BadInput(
            f"{root.path} has no annotations yet; run `ambient-omni run --until annotate`"
        )
    annotations = _trained_on(root, annotations)
    columns: dict[str, list[int]] = {}
    for policy_id, label in _labels(root, annotations).items():
        rows = annotations.filter(pc.equal(annotations["policy_id"], policy_id))
        counts = effective_samples_per_band(
            rows["sigma_min"].to_numpy(), rows["sigma_max"].to_numpy(), BANDS
        )
        columns[label] = [int(n) for n in np.rint(counts)]
    bands = [f"{low:g} - {high:g}" for low, high in pairwise(BANDS)]
    body = list(zip(bands, *columns.values(), strict=True))
    return text_table(("noise level", *columns), body)


def _trained_on(root: Root, annotations: pa.Table) -> pa.Table:
    held_out = sorted(held_out_sample_ids(root))
    rows = root.tables.read("samples", ["sample_row"], {"sample_id": held_out})["sample_row"]
    return annotations.filter(pc.invert(pc.is_in(annotations["sample_row"], rows)))


def _labels(root: Root, annotations: pa.Table) -> dict[str, str]:
    """Name each policy by what people call it, with its id where several share the name."""
    named = {p["policy_id"]: p["name"] for p in root.tables.read("policies").to_pylist()}
    found = {i: named.get(i) or i for i in pc.unique(annotations["policy_id"]).to_pylist()}
    times = Counter(found.values())
    labels = {i: name if times[name] == 1 else f"{name} {i[-6:]}" for i, name in found.items()}
    return dict(sorted(labels.items(), key=lambda item: item[1]))

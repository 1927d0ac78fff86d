"""`ambient-omni what-if`: what each policy would train on, without training."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from ambient_omni.noise.usable import effective_samples_per_band
from dagster_project.commands.lookup import text_table
from schemas.errors import BadInput
from schemas.root import Root

BANDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def what_if(root_path: Path) -> str:
    """Return how many samples each noise band gets under each policy, as text.

    Raises:
        BadInput: nothing was annotated yet.
    """
    root = Root.open(root_path)
    annotations = root.tables.read("noise_annotations", ["policy_id", "sigma_min", "sigma_max"])
    if not annotations.num_rows:
        raise BadInput(
            f"{root.path} has no annotations yet; run `ambient-omni run --until annotate`"
        )
    names = {p["policy_id"]: p["name"] for p in root.tables.read("policies").to_pylist()}
    columns: dict[str, list[int]] = {}
    for policy_id in sorted(
        set(annotations["policy_id"].to_pylist()), key=lambda i: names.get(i, i)
    ):
        rows = root.tables.read(
            "noise_annotations", ["sigma_min", "sigma_max"], {"policy_id": policy_id}
        )
        sigma_min = rows["sigma_min"].to_numpy()
        counts = effective_samples_per_band(sigma_min, rows["sigma_max"].to_numpy(), BANDS)
        columns[names.get(policy_id, policy_id)] = [int(n) for n in np.rint(counts)]
    bands = [f"{low:g} - {high:g}" for low, high in pairwise(BANDS)]
    body = list(zip(bands, *columns.values(), strict=True))
    return text_table(("noise level", *columns), body)

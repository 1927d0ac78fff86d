"""From pairs of equals to clusters."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def clusters_of(first: Rows, second: Rows) -> tuple[Rows, Rows]:
    """Join pairs into clusters: whoever is linked, directly or through others, belongs together.

    Args:
        first: (P,) one end of each pair.
        second: (P,) the other end.

    Returns:
        (M,) every row that stands in a pair, ascending, and (M,) the smallest row of its cluster.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    if not len(rows):
        return rows.astype(np.int64), rows.astype(np.int64)
    a, b = places[: len(first)], places[len(first) :]
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(rows), len(rows)))
    _, component = connected_components(links, directed=False)
    # Rows ascend, so the first one of a component is its smallest.
    _, begin = np.unique(component, return_index=True)
    return rows, rows[begin[component]]

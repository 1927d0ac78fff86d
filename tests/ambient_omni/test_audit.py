import numpy as np

from ambient_omni.data.annotations import Annotations
from ambient_omni.training.audit import Audit, bucket_names

LEVELS = Annotations(np.array([0.0, 0.3, np.nan, 2.0]), np.array([0.0, 0.0, 0.0, 0.1]))


def test_draws_are_counted_by_bucket_and_level():
    audit = Audit(LEVELS, 1.0)
    audit.add(np.array([0, 1, 1, 3]), np.array([0.05, 0.3, 1.2, 0.08]))
    state = audit.state()
    assert state["draws"] == 4
    assert state["draws_below_floor"] == 0
    assert state["draws_through_window"] == 1
    assert state["lowest_sigma_over_floor"] == 1.0
    table = np.array(state["draws_per_sigma_min_and_sigma"])
    assert table.sum(axis=1)[bucket_names().index("0.25..0.5")] == 2
    assert dict(zip(bucket_names(), state["samples_per_sigma_min"], strict=True))["null"] == 1


def test_a_draw_below_the_floor_is_seen():
    audit = Audit(LEVELS, 1.5)
    audit.add(np.array([1, 2, 3]), np.array([0.4, 50.0, 0.2]))
    assert audit.state()["draws_below_floor"] == 3


def test_the_counts_survive_a_checkpoint():
    audit, other = Audit(LEVELS, 1.0), Audit(LEVELS, 1.0)
    audit.add(np.array([0, 1]), np.array([0.05, 0.6]))
    other.restore(audit.state())
    assert other.state() == audit.state()

from types import SimpleNamespace

import numpy as np

from ambient_omni.data.annotations import Annotations
from ambient_omni.noise.soft import LEAST_ACCEPTANCE, acceptance, rate_of_slope
from ambient_omni.training.audit import Audit, Audited, bucket_names, merged
from ambient_omni.training.seen import SeenSamples

SIGMA_MIN = np.array([0.0, 0.3, np.nan, 2.0])
WINDOW = np.array([0.0, 0.0, 0.0, 0.1])
SOURCES = (("flickr", "web"), np.array([0, 0, 1, 1]))


def audit_of(kappa=1.0, sources=SOURCES, rows=(10, 11, 12, 13)):
    floor = np.where(np.isnan(SIGMA_MIN), np.inf, kappa * SIGMA_MIN)
    audited = Audited(np.array(rows), SIGMA_MIN, WINDOW, floor.__getitem__, {"source": sources})
    return Audit(audited)


def test_draws_are_counted_by_bucket_and_level():
    audit = audit_of()
    audit.add(np.array([0, 1, 1, 3]), np.array([0.05, 0.3, 1.2, 0.08]))
    report = audit.report()
    assert report["draws"] == 4
    assert report["draws_below_floor"] == 0
    assert report["draws_through_window"] == 1
    assert report["lowest_sigma_over_sigma_min"] == 1.0
    table = np.array(report["draws_per_sigma_min_and_sigma"])
    assert table.sum(axis=1)[bucket_names().index("0.25..0.5")] == 2
    assert dict(zip(bucket_names(), report["samples_per_sigma_min"], strict=True))["null"] == 1


def test_the_smallest_ratio_is_to_sigma_min_and_not_to_the_floor():
    audit = audit_of(kappa=1.5)
    audit.add(np.array([1, 0]), np.array([0.6, 0.01]))
    assert audit.state()["lowest_sigma_over_sigma_min"] == 0.6 / 0.3


def test_a_draw_below_the_floor_is_seen():
    audit = audit_of(1.5)
    audit.add(np.array([1, 2, 3]), np.array([0.4, 50.0, 0.2]))
    assert audit.state()["draws_below_floor"] == 3


def test_sources_show_their_samples_their_draws_and_their_skew():
    audit = audit_of()
    audit.add(np.array([0, 0, 0, 3]), np.array([1.0, 2.0, 3.0, 4.0]))
    sources = audit.report()["per_source"]
    assert sources["flickr"] == {
        "samples": 2,
        "samples_seen": 1,
        "draws": 3,
        "draws_over_share": 1.5,
    }
    assert sources["web"]["draws_over_share"] == 0.5


def test_the_counts_survive_a_checkpoint_also_when_a_source_was_excluded_since():
    audit, other = audit_of(), audit_of(sources=(("flickr",), np.zeros(4, int)))
    audit.add(np.array([0, 1, 3]), np.array([0.05, 0.6, 3.0]))
    other.restore(audit.state())
    other.seen.restore(audit.seen.tensors())
    assert other.state() == audit.state()
    assert other.report()["per_source"]["web"]["draws"] == 1


def test_what_was_seen_and_excluded_since_still_counts():
    audit, after = audit_of(), audit_of(rows=(10, 11, 12, 99))
    audit.add(np.array([0, 3]), np.array([1.0, 3.0]))
    after.seen.restore(audit.seen.tensors())
    report = after.report()
    assert report["samples_seen"] == 2
    assert report["samples_seen_and_excluded_since"] == 1


def test_processes_add_up_to_what_one_would_have_counted():
    index, sigma = np.array([0, 1, 3, 1]), np.array([0.1, 0.4, 2.5, 0.9])
    whole, halves, seen = audit_of(), [audit_of(), audit_of()], SeenSamples()
    whole.add(index, sigma)
    for place, half in enumerate(halves):
        half.add(index[place::2], sigma[place::2])
        seen.unite(half.seen)
    together = merged([half.state() for half in halves])
    assert together == whole.state()
    assert halves[0].report(together, seen) == whole.report()


def test_under_soft_floors_a_sample_is_held_to_where_it_is_as_good_as_never_accepted():
    threshold, slopes = 0.45, np.array([0.5, np.nan, 0.5, 0.5], np.float32)
    data = SimpleNamespace(
        annotations=Annotations(np.array([1.0, 1.0, np.nan, 1.0]), WINDOW, slopes),
        sample_rows=np.arange(4),
        sources=np.zeros(4, np.uint8),
        source_names=("s",),
        labels=None,
        threshold=threshold,
    )
    floor = Audited.of(data, 1.0, soft=True).floor_of(np.arange(4))
    assert 0 < floor[0] < 1
    rate = rate_of_slope(slopes[0], threshold)
    assert acceptance(floor[0] * 1.001, 1.0, rate, threshold) >= LEAST_ACCEPTANCE
    assert acceptance(floor[0] * 0.999, 1.0, rate, threshold) == 0
    # No slope, or a window: hard. Null: never.
    assert floor[1:].tolist() == [1.0, np.inf, 1.0]

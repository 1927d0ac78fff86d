"""A person's tour of the web page: the lineage, a batch, a plot, a run while it trains."""

import dagster as dg
import pytest

from dagster_project.instance import open_instance
from dagster_project.request import Request
from dagster_project.runner import Runner
from schemas.root import Root
from tests.data import browser
from tests.data.trainables import fill_trainable
from tests.integration.test_ui import LOCATION, serving

pytestmark = pytest.mark.slow

UPSTREAM = {"quality_scores": "pool", "noise_curves": "pool", "reference_sets": None}
_PICTURES = "[...document.querySelectorAll('img')].filter((i) => i.alt && i.naturalWidth > 300)"


@pytest.fixture
def page(tmp_path):
    """The page of a root whose images have packs, and arms that need no classifier."""
    root = Root.create(tmp_path / "root")
    fill_trainable(root)
    with open_instance(root) as instance:
        Runner(root, Request.load(root), instance=instance).register_partitions()
        for asset, partition in UPSTREAM.items():  # else the page asks whether one is sure
            instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))
    with serving(root.path, "--no-daemon") as page:
        page.root = root
        yield page


@browser.needs_browser
def test_a_person_walks_from_the_lineage_to_a_model(page, tmp_path):
    with browser.opened(tmp_path) as person:
        sees_the_lineage(person, page)
        materializes_a_batch(person, page)
        opens_a_plot(person, page)
        watches_a_training(person, page)
        finds_the_model(person, page)
        assert person.errors == []


def sees_the_lineage(person, page):
    person.go(f"{page.url}/assets/trained_models?view=lineage&lineageScope=upstream&lineageDepth=9")
    person.read("samples", "training_pack", "noise_classifier", "noise_annotations", "curate")


def materializes_a_batch(person, page):
    person.go(f"{page.url}/assets/noise_annotations?view=partitions")
    person.read("Missing (2)", "Materialized (0)", "pool", "reference")
    person.click("Materialize…", inside="button")
    person.read("Launch runs to materialize noise_annotations", "0 partitions")
    person.click("Select a partition or create one", whole=False)
    person.read("Select all (2)")
    person.click("pool")
    person.read("1 partition")
    person.click("Launch 1 run", inside="button")
    person.read("Materialized (1)", "Missing (1)")


def opens_a_plot(person, page):
    person.go(f"{page.url}/assets/noise_annotations?view=partitions&partition=pool")
    # Row counts, table version and preview stand beside the plot.
    said = person.read("20 unchanged", "table_version", "images_per_noise_band", "sigma_min")
    assert "only_reference" in said
    person.click("[Show Markdown]")
    person.wait(f"{_PICTURES}.length === 1", "no picture was opened")
    assert person.run(f"{_PICTURES}[0].alt") == "images of pool per noise band"
    person.click("Close", inside="button")


def watches_a_training(person, page):
    person.go(f"{page.url}/locations/{LOCATION}/jobs/train/playground")
    person.read("train_arm:", "table_versions:", "No errors", "No missing config")
    person.click("Launch Run", inside="button")
    person.read("Run of train", "Terminate")
    # The trainer is a process of its own, which loads torch first.
    going_on = person.read("images: loss", "seconds_per_step", seconds=240)
    assert "RUN_SUCCESS" not in going_on
    person.read("held_out_total", "RUN_SUCCESS", "Success", seconds=120)


def finds_the_model(person, page):
    (run,) = page.root.tables.read("training_runs").to_pylist()
    assert (run["status"], run["name"]) == ("finished", "everything")
    person.go(f"{page.url}/assets/trained_models?view=partitions&partition=everything")
    person.read(run["run_id"], "images_seen", "curve_held_out_total", "samples")

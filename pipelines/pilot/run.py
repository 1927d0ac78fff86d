"""Pilot trainings, from settings to a policy. Cached by their inputs; what was stopped goes on."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ambient_omni.training.config import TrainConfig
from ambient_omni.training.run_record import RunRecord
from pipelines import policies
from pipelines.jobs.annotate import annotate
from pipelines.measures import classifier_row
from pipelines.pilot.choose import Comparison, choose, in_bands, relative_gain
from pipelines.pilot.config import PilotConfig
from pipelines.pilot.detail import missing_detail
from pipelines.pilot.measure import Floats, Measured, measure_run
from pipelines.policies import ClassifierThreshold, FixedPerSource, PilotCalibrated
from schemas.errors import BadInput, NotEnoughReferences
from schemas.ids import canonical_hash
from schemas.reference_sets import TRUSTED
from schemas.root import Root, write_json

ONLY_REFERENCE = "only reference"
_RULE = 2  # raise it when `choose` would choose otherwise by the same measurements

Candidate = ClassifierThreshold | FixedPerSource


@dataclass(frozen=True)
class PilotResult:
    """What a pilot found.

    Attributes:
        pilot_id: its name.
        policy: the thresholds, as a policy.
        table: for people: loss of each candidate per band, its `Comparison`, what was chosen.
        passes: over the trusted images, of each training.
        notes: what to know of it.
    """

    pilot_id: str
    policy: PilotCalibrated
    table: list[dict[str, Any]]
    passes: float
    notes: tuple[str, ...]


def candidates(root: Root, config: PilotConfig) -> dict[str, Candidate]:
    """Return the policies that are tried, from the laxest to the strictest, by name.

    Raises:
        TableMissing: there is no such classifier.
        BadInput: the classifier does not grade what the pilot trains on.
    """
    space = str(classifier_row(root, config.classifier_id)["noise_space"])
    found: dict[str, Candidate] = {}
    for tau in config.thresholds:
        if tau == 0:
            found["everything"] = FixedPerSource(noise_space=space, levels={"*": 0.0})
        else:
            found[f"P > {tau:g}"] = ClassifierThreshold(
                noise_space=space,
                classifier_id=config.classifier_id,
                tau=tau,
                decay_exponent=None,
            )
    found[ONLY_REFERENCE] = FixedPerSource(noise_space=space, levels={"*": None})
    return found


def calibrate(root: Root, config: PilotConfig, *, show: bool = True) -> PilotResult:
    """Train the pilots that are missing, measure them, and register the policy that they set.

    Raises:
        TableMissing, AnnotationMissing: curves or samples are not there.
        NotEnoughReferences: nobody is trusted, or nobody is held out.
        BadInput: pilot and classifier speak of different noise spaces.
        TrainingFailed, TrainingStopped, PackMissing: as of a training.
        JobAlreadyRunning: another process runs the same pilot.
    """
    tried = candidates(root, config)
    with root.lock("pilot", canonical_hash(config.model_dump(mode="json"))):
        runs = _prepare(root, config, tried)
        pilot_id = _pilot_id(root, config, runs)
        file = result_file(root, pilot_id)
        if not file.exists():
            measured = [_trained(root, run, show) for run in runs.values()]
            write_json(file, _findings(root, config, tried, measured))
    found = json.loads(file.read_text())
    policy = PilotCalibrated(
        name=f"pilot {pilot_id}",
        noise_space=next(iter(tried.values())).noise_space,
        classifier_id=config.classifier_id,
        pilot_id=pilot_id,
        edges=config.band_edges(),
        tau=tuple(found["tau"]),
    )
    policies.register(root, policy)
    return PilotResult(pilot_id, policy, found["table"], found["passes"], tuple(found["notes"]))


def cost(root: Root, config: PilotConfig) -> str:
    """Return what the pilot would do and about how long it takes; a few steps are timed.

    Raises:
        TableMissing: there is no such classifier.
        NotEnoughReferences: nobody is trusted.
    """
    names = list(candidates(root, config))
    run = config.train_config("pilot", "pilot")
    seconds = _seconds_per_image(run)
    passes = run.num_images / _num_trusted(root)
    return (
        f"{len(names)} pilot trainings ({', '.join(names)}) of {run.num_images} images, "
        f"{passes:.0f} passes over the trusted ones: about "
        f"{len(names) * run.num_images * seconds / 60:.1f} minutes here, without evaluation"
    )


def result_file(root: Root, pilot_id: str) -> Path:
    """Return where the findings of a pilot are kept."""
    return root.work / "pilots" / f"{pilot_id}.json"


def _prepare(
    root: Root, config: PilotConfig, tried: dict[str, Candidate]
) -> dict[str, TrainConfig]:
    runs = {}
    for name, policy in tried.items():
        run = config.train_config(f"pilot: {name}", policy.policy_id)
        _require_space(policy.noise_space, run)
        for batch in config.batches:
            annotate(root, batch, policy)
        runs[name] = run
    return runs


def _pilot_id(root: Root, config: PilotConfig, runs: dict[str, TrainConfig]) -> str:
    inputs = {
        "runs": {name: RunRecord.of(root, run).run_id for name, run in runs.items()},
        "edges": config.band_edges(),
        "detail_tolerance": config.detail_tolerance,
        "rule": _RULE,
        "run_images": config.run_images,
    }
    return canonical_hash(inputs)


def _trained(root: Root, run: TrainConfig, show: bool) -> Measured:
    from ambient_omni.training.trainer import train

    return measure_run(root, train(root, run, show=show))


def _findings(
    root: Root,
    config: PilotConfig,
    tried: dict[str, Candidate],
    measured: Sequence[Measured],
) -> dict[str, Any]:
    edges, sigmas = config.band_edges(), measured[0].sigmas
    found = compare(measured, edges)
    chosen = choose(found, config.detail_tolerance)
    names = list(tried)
    thresholds = [*config.thresholds, None]
    passes = config.train_config("x", "x").num_images / _num_trusted(root)
    losses = [in_bands(run.loss, sigmas, edges).mean(axis=0) for run in measured]
    bounds = [0.0, *edges, None]
    table = [
        {
            "band": [bounds[band], bounds[band + 1]],
            "chosen": names[chosen[band]],
            "candidates": {
                name: {
                    "loss": float(losses[number][band]),
                    **{key: float(value[number][band]) for key, value in asdict(found).items()},
                }
                for number, name in enumerate(names)
            },
        }
        for band in range(len(edges) + 1)
    ]
    return {
        "tau": [thresholds[number] for number in chosen],
        "table": table,
        "passes": passes,
        "notes": _notes(config, passes, [names[number] for number in chosen]),
    }


def compare(measured: Sequence[Measured], edges: Sequence[float]) -> Comparison:
    """Compare runs with the last one, band by band."""
    sigmas = measured[0].sigmas

    def banded(values_NL: Floats) -> Floats:
        return in_bands(values_NL, sigmas, edges)

    before, fine_before = banded(measured[-1].loss), banded(measured[-1].fine_error)
    found: dict[str, list[Floats]] = {"gain": [], "fine_gain": [], "missing": []}
    for run in measured:
        right, power = banded(run.right), banded(run.power)
        missing = [missing_detail(*pair) for pair in zip(right.T, power.T, strict=True)]
        found["gain"].append(np.array(relative_gain(banded(run.loss), before)))
        found["fine_gain"].append(np.array(relative_gain(banded(run.fine_error), fine_before)))
        found["missing"].append(np.array(missing).T)
    return Comparison(
        **{name: np.stack([value for value, _ in runs]) for name, runs in found.items()},
        **{f"{name}_error": np.stack([error for _, error in runs]) for name, runs in found.items()},
    )


def _notes(config: PilotConfig, passes: float, chosen: list[str]) -> list[str]:
    notes = []
    images = config.train_config("x", "x").num_images
    if config.run_images is not None and images < config.run_images:
        notes.append(
            f"the pilot stops after {images} of the run's {config.run_images} images "
            f"({passes:.0f} passes over the trusted ones): it may favour the references"
        )
    if set(chosen) == {ONLY_REFERENCE}:
        notes.append("no pool image is accepted at any level: nothing lowered the held-out loss")
    return notes


def _num_trusted(root: Root) -> int:
    trusted = root.tables.read("reference_sets", ["sample_row"], {"reference_set": TRUSTED})
    if not trusted.num_rows:
        raise NotEnoughReferences("the trusted set is empty; run references first")
    return int(trusted.num_rows)


def _require_space(noise_space: str, run: TrainConfig) -> None:
    from ambient_omni.training.models import space_of

    found = space_of(run).noise_space
    if found != noise_space:
        raise BadInput(
            f"the pilot would train in {found}, its classifier measures in {noise_space}: set "
            "training.transform (and training.latents) to the classifier's"
        )


def _seconds_per_image(run: TrainConfig) -> float:
    """Time three steps of the very network on random images."""
    import torch

    from ambient_omni import rng
    from ambient_omni.training.models import new_model, space_of

    model = new_model(run, 0)
    x0 = rng.torch_normal((run.batch_size, *space_of(run).x0_shape), 0, "pilot-cost")
    sigma = torch.ones(run.batch_size)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        model.denoiser(x0, sigma).square().mean().backward()
        times.append(time.perf_counter() - began)
    return min(times[1:]) / run.batch_size

"""The life of noise classifiers: candidate, promoted, retired.

While none is promoted, levels come from the classifier that the present pool makes, as in the
first run. A promoted one grades every batch from then on, until another takes its place.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dagster_project.operations.config import ClassifierLife
from dagster_project.request import Request
from schemas.errors import BadInput, ClassifierRefused
from schemas.reference_sets import TRUSTED
from schemas.registry import contract
from schemas.root import Root

if TYPE_CHECKING:
    from ambient_omni.classifier.noise_classifier import NoiseClassifier

TABLE = "noise_classifiers"
QUESTION = "reference_against_pool"


@dataclass(frozen=True)
class Comparison:
    """How a candidate does beside the promoted classifier on the present pool.

    Attributes:
        gain: mean over levels and images of the total variation that it tells more; below 0: less.
        standard_error: of the gain; images are paired.
        num_images: references and images of the pool that both graded.
    """

    gain: float
    standard_error: float
    num_images: tuple[int, int]

    def beats(self, min_gain: float) -> bool:
        """Say whether it gains more than that, beyond two standard errors."""
        return self.gain - 2 * self.standard_error > min_gain


def promoted_id(root: Root, noise_space: str) -> str | None:
    """Return the promoted classifier of a noise space, None where there is none.

    Raises:
        BadInput: there are two, and which one grades would be luck.
    """
    promoted = _promoted(root, noise_space)
    if len(promoted) > 1:
        raise BadInput(
            f"noise classifiers {', '.join(promoted)} are all promoted in {noise_space}; promote "
            "the right one again: that retires the others"
        )
    return promoted[0] if promoted else None


def _promoted(root: Root, noise_space: str) -> list[str]:
    where = {"status": "promoted", "noise_space": noise_space, "question": QUESTION}
    return sorted(root.tables.read(TABLE, ["classifier_id"], where)["classifier_id"].to_pylist())


def rival_id(root: Root, noise_space: str) -> str | None:
    """Return the promoted classifier that a candidate has to beat.

    One of another version can grade nothing any more: there is nothing to hold against it.
    """
    from ambient_omni.classifier.stored import is_current

    promoted = promoted_id(root, noise_space)
    return promoted if promoted and is_current(root, promoted) else None


def train_candidate(root: Root, request: Request) -> str:
    """Train a classifier on the present pool and reference; return its id.

    Raises:
        ClassifierRefused: it does not find planted damage, so it is no candidate.
        NotEnoughReferences, BadInput, PackMissing: as `train_classifier`.
    """
    from ambient_omni.classifier.noise_classifier import train_classifier

    recipe = request.full_recipe
    return train_classifier(
        root,
        recipe.classifier,
        pool_batches=request.of_role("pool"),
        reference_set=TRUSTED,
        transform=recipe.transform,
        latents=recipe.training.latents,
    )


def compare(
    root: Root, request: Request, candidate: str, promoted: str, max_images: int
) -> Comparison:
    """Let both grade held-out references and images of the pool, each by what did not see them."""
    from ambient_omni.classifier.data import ClassifierData
    from ambient_omni.classifier.noise_classifier import load

    recipe = request.full_recipe
    data = ClassifierData.read(root, request.of_role("pool"), TRUSTED)
    both = [load(root, name) for name in (candidate, promoted)]
    gains = []
    for members, trusted in ((data.validation, True), (data.pool, False)):
        images = members.images(root, recipe.space).first_by_content(max_images)
        new, old = (_right(classifier, images, trusted=trusted) for classifier in both)
        gains.append(new - old)
    error = np.sqrt(sum(np.var(gain, ddof=1) / len(gain) for gain in gains))
    return Comparison(
        gain=float(sum(gain.mean() for gain in gains)),
        standard_error=float(error),
        num_images=(len(gains[0]), len(gains[1])),
    )


def promote(
    root: Root,
    classifier_id: str,
    noise_space: str,
    life: ClassifierLife,
    comparison: Comparison | None = None,
) -> str | None:
    """Promote a classifier and retire the one before; return the retired one's id.

    Doing it again changes nothing.

    Args:
        root: where the tables are.
        classifier_id: which.
        noise_space: the recipe's; a classifier of another one grades nothing here.
        life: the recipe's settings.
        comparison: with the promoted one; None: a person takes it as it is.

    Raises:
        BadInput: there is no such classifier, or it is of another noise space or question.
        ClassifierRefused: its control failed, or it does not beat the promoted one.
        JobAlreadyRunning: another process promotes one.
    """
    from ambient_omni.classifier.stored import require_current

    row = _row(root, classifier_id)
    if row["noise_space"] != noise_space:
        raise BadInput(
            f"classifier {classifier_id} grades in {row['noise_space']}, the recipe works in "
            f"{noise_space}; train one with this recipe"
        )
    if row["question"] != QUESTION:
        raise BadInput(
            f"classifier {classifier_id} answers {row['question']}, and only one of {QUESTION} "
            "grades a pool"
        )
    require_current(root, classifier_id)
    if not control_passed(row):
        raise ClassifierRefused(f"classifier {classifier_id} did not find planted damage")
    if comparison is not None and not comparison.beats(life.min_gain):
        raise ClassifierRefused(
            f"classifier {classifier_id} does not beat the promoted one: it gains "
            f"{comparison.gain:.3f} +- {comparison.standard_error:.3f} in total variation, more "
            f"than {life.min_gain:g} by two standard errors is needed; --force promotes it anyway"
        )
    with root.lock("promote", "classifiers"):
        before = [name for name in _promoted(root, noise_space) if name != classifier_id]
        rows = [_row(root, name) | {"status": "retired"} for name in before]
        rows.append(_row(root, classifier_id) | {"status": "promoted"})
        root.tables.upsert(TABLE, contract(TABLE).table(rows), job="promote")
    return ", ".join(before) or None


def newest_candidate(root: Root, noise_space: str) -> str:
    """Return the candidate that saw the most batches.

    Raises:
        BadInput: there is none.
    """
    from ambient_omni.classifier.stored import is_current

    where = {"status": "candidate", "noise_space": noise_space, "question": QUESTION}
    rows = root.tables.read(TABLE, ["classifier_id", "pool_batches"], where).to_pylist()
    rows = [row for row in rows if is_current(root, row["classifier_id"])]
    if not rows:
        raise BadInput("there is no candidate; train one with `ambient-omni candidate`")
    return str(max(rows, key=lambda row: len(row["pool_batches"]))["classifier_id"])


def control_passed(row: dict[str, Any]) -> bool:
    """Say whether planted damage was found, from a classifier's row."""
    findings = json.loads(row["control"]).get("planted", {})
    return any(finding["found"] for finding in findings.values())


def _row(root: Root, classifier_id: str) -> dict[str, Any]:
    rows = root.tables.read(TABLE, where={"classifier_id": classifier_id}).to_pylist()
    if not rows:
        known = root.tables.read(TABLE, ["classifier_id"])["classifier_id"].to_pylist()
        raise BadInput(f"there is no noise classifier {classifier_id!r} (there are: {known})")
    found: dict[str, Any] = rows[0]
    return found


def _right(classifier: "NoiseClassifier", images: Any, *, trusted: bool) -> np.ndarray:
    """Return, per image, the share of levels at which it is told rightly, float64 (N,)."""
    from ambient_omni.classifier.annotators import under_own_noises
    from ambient_omni.data.packs import to_x0

    config = classifier.config
    logits = under_own_noises(
        classifier,
        images.sample_ids,
        lambda some: to_x0(images.take(some)),
        config.sigmas,
        config.num_noises // 2,
        config.seed,
    )
    right = logits > 0 if trusted else logits <= 0
    share: np.ndarray = right.mean(axis=1)
    return share

"""A recipe: every setting of the graph as one frozen value. Bundled ones lie in `recipes/`."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from ambient_omni.classifier.config import AnnotatorConfig, ClassifierConfig
from ambient_omni.config import Frozen, explained, load_config
from ambient_omni.data.transforms import Transform
from ambient_omni.training.config import TrainConfig
from dagster_project.operations.config import OperationsConfig
from dagster_project.rules import Rule
from pipelines.demo_data import DemoDataConfig
from pipelines.ingest.config import IngestConfig
from pipelines.jobs.ood import OodConfig
from pipelines.jobs.score import ScoreConfig
from pipelines.spark import SparkSettings
from schemas.errors import BadInput

if TYPE_CHECKING:
    from ambient_omni.data.packs import Space

SUFFIXES = (".yaml", ".yml", ".json")
Model = TypeVar("Model", bound=BaseModel)
_GIVEN_BY_THE_GRAPH = ("name", "policy_id", "batches", "transform")


class Training(TrainConfig):
    """What all arms' runs share: `TrainConfig` without what the graph itself fills in."""

    name: str = Field(default="", exclude=True)
    policy_id: str = Field(default="", exclude=True)
    batches: tuple[str, ...] = Field(default=(), exclude=True)
    transform: Transform = Field(default=Transform(), exclude=True)

    @model_validator(mode="after")
    def _network_fits_images(self) -> "Training":
        # The recipe's transform is not known here; the recipe checks.
        given = [name for name in _GIVEN_BY_THE_GRAPH if name in self.model_fields_set]
        if given:
            raise ValueError(f"{given[0]} is filled in by the graph; leave it out")
        return self

    def of_arm(
        self, name: str, policy_id: str, batches: tuple[str, ...], transform: Transform
    ) -> TrainConfig:
        """Return the configuration of one arm's run."""
        given = {"name": name, "policy_id": policy_id, "batches": batches, "transform": transform}
        return TrainConfig.model_validate(self.model_dump() | given)


class Recipe(Frozen):
    """Every setting of the graph.

    Attributes:
        description: what it is for.
        transform: pixels that levels, the classifier and training speak about.
        ingest: which images are taken.
        validation_fraction: expected share of the reference held out of training.
        scores: what is measured of each image; its encoder must be the distance's.
        ood: how distance to the trusted set is measured.
        classifier: the networks that tell trusted images from the pool's at every level.
        annotator: how the classifier is asked about the pool; null: on its own grid of levels.
            `kind: head` asks 7 times an image, for large pools.
        arms: name of each model to train, and the rule whose levels it obeys.
        main_arm: the arm that the report explains.
        baseline_arm: the arm that the report compares with.
        training: what all arms share; with `latents`, classifiers and levels are in them too.
        spark: how to reach Spark.
        operations: what happens by itself: watched folders, drift, promotion, launches.
        demo_data: only the demo's recipes: the images to draw.
    """

    description: str = ""
    transform: Transform = Transform()
    ingest: IngestConfig = IngestConfig()
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    scores: ScoreConfig = ScoreConfig()
    ood: OodConfig = OodConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    annotator: AnnotatorConfig | None = None
    arms: dict[str, Rule] = Field(min_length=1)
    main_arm: str = "annotated"
    baseline_arm: str = "only_reference"
    training: Training = Training()
    spark: SparkSettings = SparkSettings()
    operations: OperationsConfig = OperationsConfig()
    demo_data: DemoDataConfig | None = None

    @property
    def space(self) -> "Space":
        """What levels, classifiers and training speak about: pixels, or latents of training's."""
        if self.training.latents is None:
            return self.transform
        from ambient_omni.data.latents import latent_space

        return latent_space(self.training.latents, self.transform)

    @property
    def noise_space(self) -> str:
        """What σ is measured in."""
        return self.space.noise_space

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        for role, arm in (("main_arm", self.main_arm), ("baseline_arm", self.baseline_arm)):
            if arm not in self.arms:
                raise ValueError(
                    f"{role} {arm!r} is none of the arms {sorted(self.arms)}; set {role} to one of "
                    "them"
                )
        if self.scores.encoder != self.ood.encoder:
            raise ValueError("scores.encoder and ood.encoder differ; distances need its vectors")
        if self.training.latents is None and self.training.init_from is None:
            self.training.network.require_fit(self.transform.resolution)
        return self


def load_recipe(name: str) -> Recipe:
    """Return a bundled recipe by name, or one from a YAML or JSON file.

    Raises:
        BadInput: there is none, or a setting is unknown or out of range; the message names it.
    """
    if name.endswith(SUFFIXES):
        return load_config(Path(name).expanduser(), Recipe, "recipe")
    bundled = resources.files("dagster_project") / "recipes" / f"{name}.yaml"
    if not bundled.is_file():
        raise BadInput(f"no recipe {name!r}; there are {', '.join(recipe_names())}, or name a file")
    with resources.as_file(bundled) as file:
        return load_config(file, Recipe, "recipe")


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    folder = resources.files("dagster_project") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if ".yaml" in f.name)


def parse_recipe(values: Any, where: str) -> Recipe:
    """Check plain values and return the recipe.

    Raises:
        BadInput: a setting is unknown, missing or out of range.
    """
    return _checked(Recipe, values, where)


def parse_ingest(values: Any, batch: str) -> IngestConfig:
    """Check the ingest settings of one batch.

    Raises:
        BadInput: a setting is unknown or out of range.
    """
    return _checked(IngestConfig, values, f"ingest of batch {batch}")


def _checked(model: type[Model], values: Any, where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {explained(error, model)}") from error

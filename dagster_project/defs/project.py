"""The one resource: which root, and what was asked of it."""

from pathlib import Path
from typing import Any

import dagster as dg

from dagster_project.operations.config import OperationsConfig
from dagster_project.request import Request
from schemas.errors import BadInput
from schemas.root import ROOT_VARIABLE, Root

RECIPE_VARIABLE = "AMBIENT_OMNI_RECIPE"


class Project(dg.ConfigurableResource[None]):
    """Where the data are and how they are worked on.

    Attributes:
        root_path: the root's folder.
        recipe_name: name or file of a recipe that overrides the one the root was run with.
    """

    root_path: str
    recipe_name: str = ""

    @property
    def root(self) -> Root:
        """The root, opened anew, so that each step sees the newest tables."""
        if not self.root_path:
            raise BadInput(f"no root is set; put its folder into the variable {ROOT_VARIABLE}")
        return Root.open(self.root_path)

    @property
    def request(self) -> Request:
        """What was asked of the root; the recipe override, if any, applied."""
        request = Request.load(self.root)
        if request is None:
            raise BadInput(
                f"{self.root_path} was asked for nothing yet; name its sources with "
                f"`ambient-omni run --root {self.root_path} --source ... --reference ...`"
            )
        if not self.recipe_name:
            return request
        from dagster_project.recipe import load_recipe

        recipe = load_recipe(self.recipe_name).model_dump(mode="json")
        return request.model_copy(update={"recipe": recipe})

    def with_recipe(self, name: str) -> "Project":
        """Return the project under another recipe; under its own for an empty name."""
        return Project(root_path=self.root_path, recipe_name=name) if name else self

    @property
    def recipe_values(self) -> dict[str, Any]:
        """The recipe's plain values, empty where nothing was asked for yet; cheap to read."""
        try:
            request = Request.load(Root(Path(self.root_path))) if self.root_path else None
        except BadInput:
            return {}  # whoever runs something is told; the page must come up
        return request.recipe if request else {}

    @property
    def operations(self) -> OperationsConfig:
        """The recipe's `operations`."""
        return OperationsConfig.model_validate(self.recipe_values.get("operations", {}))

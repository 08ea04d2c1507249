"""`FleetPlan`: the devices, budgets and batch sizes that one super-network is to serve. Written by people in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from instatune_deploy.errors import RecipeError
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.documents import parse_yaml
from instatune_deploy.values.recipe import PositiveInt, Section, explain_fault, relative_to

Percentile = Literal["p50", "p90", "p99"]


class FleetPlan(Section):
    """A network is wanted for every target, budget and batch size together.

    `run` is the directory of a run whose sub-networks were searched. `targets` are names, or YAML files. A budget on the
    latency is of a call, whatever the number of samples in it. `batches` are samples a call; the target's own deployments
    are taken with each of these. `foreign_tables` lets latency tables of other machines serve where this machine has none.
    """

    run: str
    targets: Annotated[list[str], pydantic.Field(min_length=1)]
    budgets: Annotated[list[str | float], pydantic.Field(min_length=1)]
    batches: Annotated[list[PositiveInt], pydantic.Field(min_length=1, default_factory=lambda: [1])]
    percentile: Percentile | None = None
    foreign_tables: bool = False

    @pydantic.field_validator("targets", "budgets", "batches")
    @classmethod
    def _each_once(cls, given: list[object]) -> list[object]:
        if twice := sorted({str(entry) for entry in given if given.count(entry) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return given

    def wanted(self, metric: str) -> list[Budget]:
        """The budgets, where the run's metric is called `metric`.

        Raises:
            UsageError: one is none.
        """
        return [Budget.parse(text, metric=metric) for text in self.budgets]


def read_fleet_plan(path: Path) -> FleetPlan:
    """The plan in a YAML file; paths in it that start with ``./`` or ``../`` are relative to the file.

    Raises:
        RecipeError: it is unreadable, or a key is missing, unknown (names the nearest) or of the wrong form.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected the keys run, targets and budgets")
    try:
        plan = FleetPlan.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{path}: {explain_fault(error, FleetPlan)}") from None
    targets = [relative_to(path, target) for target in plan.targets]
    return plan.model_copy(update={"run": relative_to(path, plan.run), "targets": targets})

"""Minutes and disk of what a run has left to do: estimates, from quick measurements and from what a recipe allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instatune_deploy.elastic.subnetwork import full_architecture
from instatune_deploy.job import Job
from instatune_deploy.planning.measuring import Speed, measure_speed
from instatune_deploy.planning.steps import Step, plan_steps
from instatune_deploy.values.recipe import TrainingSection

#: Seconds of exporting, converting or quantising a network: so many, and so many more for a million parameters (on
#: BERT-base, one core of a server: 11 s).
EXPORT_S, EXPORT_S_PER_MILLION = 3.0, 0.07
#: Seconds to make the files of a table's networks and to load them.
FILES_S = 10.0
#: Seconds that the search itself takes for each evaluation (250 evaluations on five deployments: 76 s).
SEARCH_S = 0.3
#: Bytes of a trained parameter; of one in a checkpoint, which holds two moments of the optimizer beside it.
_WEIGHT, _CHECKPOINT = 4, 12
#: A training keeps two checkpoints, and writes a third before it removes one.
_CHECKPOINTS = 3
#: An artifact holds its weights three times: safetensors, ONNX, OpenVINO.
_COPIES = 3


@dataclass(frozen=True)
class Estimated:
    """A step with the seconds it should take, and the bytes that it leaves on the disk (`disk_bytes`) or needs for a while
    (`passing_bytes`)."""

    step: Step
    seconds: float
    disk_bytes: int
    passing_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """All steps of a run with their estimates, and what these were measured from; None where nothing is left to do."""

    steps: tuple[Estimated, ...]
    speed: Speed | None

    @property
    def minutes(self) -> float:
        """That all of it should take."""
        return sum(found.seconds for found in self.steps) / 60

    @property
    def disk_bytes(self) -> int:
        """That it leaves on the disk."""
        return sum(found.disk_bytes for found in self.steps)

    @property
    def peak_bytes(self) -> int:
        """That it needs on the disk at the most."""
        return self.disk_bytes + max((found.passing_bytes for found in self.steps), default=0)

    @property
    def lines(self) -> list[str]:
        """For people: a line a step, then all of them together."""
        lines = []
        for number, found in enumerate(self.steps, start=1):
            step, cost = found.step, ""
            if step.state != "reused":
                cost = f": {step.what}; about {_minutes(found.seconds / 60)} and {_size(found.disk_bytes)}"
            lines.append(f"{number:2}. {step}{cost}")
        if self.speed is None:
            return [*lines, "nothing is left to do: everything is reused"]
        return [
            *lines,
            f"in all about {_minutes(self.minutes)}, {_size(self.disk_bytes)} on the disk, {_size(self.peak_bytes)} while it "
            f"trains: estimates, {_basis(self.speed)}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; all numbers but those in `measured` are estimates."""
        steps = [
            {**asdict(f.step), "estimated_seconds": f.seconds, "estimated_disk_bytes": f.disk_bytes} for f in self.steps
        ]
        return {
            "steps": steps, "estimated_minutes": self.minutes, "estimated_disk_bytes": self.disk_bytes,
            "estimated_peak_bytes": self.peak_bytes, "measured": None if self.speed is None else asdict(self.speed),
        }  # fmt: skip


def make_plan(job: Job, steps: Sequence[Step] | None = None) -> Plan:
    """What a run of the job would do, with estimates from a few training steps and forward passes made now.

    Args:
        steps: its steps, where they are known.

    Raises:
        UsageError: what is already there is damaged.
    """
    steps = plan_steps(job) if steps is None else steps
    kinds = {step.kind for step in steps if step.state != "reused"}
    if not kinds:
        return Plan(tuple(Estimated(step, 0.0, 0) for step in steps), None)
    plain = "teacher" in kinds or bool("selection" in kinds and job.recipe.tune_epochs)
    speed = measure_speed(job, plain=plain, elastic="super-network" in kinds)
    costs = _Costs(job, speed)
    searched = next((step for step in steps if step.kind == "front" and step.state != "reused"), None)
    found = [
        costs.of(step, first=step is searched) if step.state != "reused" else Estimated(step, 0.0, 0) for step in steps
    ]
    return Plan(tuple(found), speed)


class _Costs:
    """Seconds and bytes of steps."""

    def __init__(self, job: Job, speed: Speed) -> None:
        self.job, self.recipe, self.speed = job, job.recipe, speed
        self.weights = _WEIGHT * speed.parameters
        self.export_s = EXPORT_S + EXPORT_S_PER_MILLION * speed.parameters / 1e6

    def of(self, step: Step, *, first: bool) -> Estimated:
        """The estimate of a step that is to be done; the `first` search of a run evaluates for those of all targets."""
        if step.kind == "teacher":
            return self._training(step, self.recipe.finetune.teacher, self.speed.plain_step_s)
        if step.kind == "super-network":
            return self._training(step, self.recipe.finetune, self.speed.elastic_step_s)
        if step.kind == "space":
            return Estimated(step, self._importance_s(), 0)
        if step.kind == "table":
            probes = 10 * self.weights  # the files of its networks, random weights, which go with its target
            return Estimated(step, 1.5 * self.recipe.profile.seconds + FILES_S + self.export_s, 300_000, probes)
        if step.kind == "front":
            return Estimated(step, self._search_s(step.left) if first else 10.0, 1_000_000)
        return self._selection(step)

    def _training(self, step: Step, settings: TrainingSection | None, step_s: float | None) -> Estimated:
        if settings is None or step_s is None:
            return Estimated(step, 0.0, 0)
        steps = _steps(settings, len(self.job.data.train))
        importance_s = self._importance_s() if step.kind == "super-network" and self.recipe.space != "auto" else 0.0
        passing = _CHECKPOINTS * _CHECKPOINT * self.speed.parameters
        return Estimated(step, step.left * steps * step_s + importance_s, self.weights, passing)

    def _importance_s(self) -> float:
        """One backward pass, and for each depth a forward pass without each of the layers that are left."""
        settings = self.recipe.finetune
        if settings.importance == "none" and settings.layer_order == "last_first":
            return 0.0
        rows = min(settings.importance_rows, len(self.job.data.train))
        depth = full_architecture(self.job.config).depth
        least = sum(stage[0] for stage in self.job.named_space.depths)
        passes = 3 + sum(left * left / depth for left in range(least, depth))
        return rows * self.speed.sample_s * passes

    def _search_s(self, left: float) -> float:
        search, samples = self.recipe.search, len(self.job.data.search)
        most = search.evaluations or search.warm_start + search.rounds * search.batch
        evaluated_s = left * most * (samples * self.speed.sample_s * self.speed.mean_share + SEARCH_S)
        if search.minutes is not None:
            evaluated_s = min(evaluated_s, 60 * search.minutes)
        targets = [self.job.target(name) for name in self.recipe.targets]
        precisions = {
            d.arithmetic
            for target in targets
            for d in self.job.executor.site(target).usable(target)[0]
            if d.precision != "fp32"
        }
        deployed_s = self.export_s + samples * self.speed.sample_s * self.speed.mean_share
        return evaluated_s + search.deployed * len(precisions) * deployed_s

    def _selection(self, step: Step) -> Estimated:
        """The full network and one candidate: exported, measured, evaluated on the report split."""
        recipe = self.recipe
        each_s = self.export_s + len(self.job.report_split) * self.speed.sample_s
        tuned_s = 0.0
        if recipe.tune_epochs and self.speed.plain_step_s is not None:
            epochs = recipe.finetune.model_copy(update={"epochs": recipe.tune_epochs})
            tuned_s = _steps(epochs, len(self.job.data.train)) * self.speed.plain_step_s
        seconds = 2 * each_s + 2 * recipe.profile.confirm_seconds + tuned_s
        return Estimated(step, seconds, int(_COPIES * self.weights * (1 + self.speed.mean_share)))


def _steps(settings: TrainingSection, samples: int) -> int:
    a_pass = math.ceil(samples / (settings.batch_size * settings.gradient_accumulation))
    return math.ceil(settings.epochs * a_pass)


def _basis(speed: Speed) -> str:
    """What estimates rest on."""
    trained = [
        f"{1000 * seconds:.0f} ms a step of {what}"
        for what, seconds in (("fine-tuning", speed.plain_step_s), ("elastic fine-tuning", speed.elastic_step_s))
        if seconds is not None
    ]
    forward = f"{1000 * speed.sample_s:.2f} ms a sample of the full network"
    return f"from {', '.join([*trained, forward])}, measured now in {speed.took_s:.0f} s"


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return f"{max(1, round(60 * minutes))} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"

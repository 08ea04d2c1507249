"""`Executor`: where the work of a job is done; by this one on this machine, by others elsewhere (see `cluster`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from instatune_deploy.device.site import HERE, Site
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.profiling import Prober, Report
from instatune_deploy.stages.evaluate.runs import Compute
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target


class Executor:
    """Does everything on this machine, in this process and those that it starts."""

    def compute(self, supernet: Supernet, outputs: Sequence[str]) -> Compute | None:
        """What runs sub-networks of `supernet` for their evaluation; None: this process does.

        Args:
            outputs: names of the model's outputs that are wanted.
        """
        return None

    def site(self, target: Target) -> Site:
        """The machine on which a target is measured.

        Raises:
            TargetError: there is none.
        """
        return HERE

    def prober(
        self, model: PreTrainedModel, space: SearchSpace, tokens: int, directory: Path, report: Report, *, seed: int
    ) -> Prober:
        """A prober that measures a target's networks at the target's site; see `Prober` for the arguments."""
        return Prober(model, space, tokens, directory, report, seed=seed)


#: This machine.
LOCAL = Executor()

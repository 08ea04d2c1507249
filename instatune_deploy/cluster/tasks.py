"""What runs on the nodes of a cluster, in processes of Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

import instatune_deploy
from instatune_deploy.cluster.network import Network
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.site import HERE, Inputs, Outputs
from instatune_deploy.device.timing import Measurement
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import InstatuneError, TargetError
from instatune_deploy.profiling import Prober
from instatune_deploy.stages.evaluate.runs import Found, network_outputs
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable, Machine
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Target

#: Rows of a split as a node reads them: numbers and inputs of some batches, and a few rows of the very first batch.
Part = tuple[tuple[Inputs, ...], dict[str, np.ndarray]]
#: The super-network that this process has built, by the name of its object.
_built: dict[str, Supernet] = {}


@dataclass(frozen=True)
class Refusal:
    """An error of this package's that a task ended with: an answer, not a fault of the node's."""

    kind: type[InstatuneError]
    text: str

    def error(self) -> InstatuneError:
        """The error, to be raised here."""
        made = self.kind.__new__(self.kind)  # some make their text themselves
        Exception.__init__(made, self.text)
        return made


def answer(function: Any, *arguments: Any, **options: Any) -> Any:
    """What `function` gives, or in its place the `Refusal` that it ends with."""
    try:
        return function(*arguments, **options)
    except InstatuneError as error:
        return Refusal(type(error), str(error))


def evaluate(
    name: str, network: Network, architectures: Sequence[Architecture], part: Part, precision: str,
    outputs: Sequence[str],
) -> list[list[Found]]:  # fmt: skip
    """What each of `architectures`, run together, puts out for the rows of `part`.

    Args:
        name: of `network`, which is built once a process.
    """
    torch.set_num_threads(1)  # a task has one CPU
    if name not in _built:
        _built.clear()
        _built[name] = network.build()
    batches, first = part
    return network_outputs(
        _built[name], architectures, [(numbers, _tensors(inputs)) for numbers, inputs in batches], precision, outputs,
        first=_tensors(first),
    )  # fmt: skip


def _tensors(inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    # A copy: an array in the object store cannot be written to, which torch warns about.
    return {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}


def version() -> str:
    """Of this package, on a node."""
    return instatune_deploy.__version__


@dataclass(frozen=True)
class Survey:
    """What a node says of itself and of a target: `problem` is why it cannot be served there; `usable` see `Site`."""

    machine: Machine
    versions: dict[str, str]
    problem: str | None
    usable: tuple[list[Deployment], list[str]]


def survey(target: Target) -> Survey:
    """See `Survey`."""
    problem = None
    try:
        HERE.check(target)
    except TargetError as error:
        problem = str(error)
    return Survey(HERE.machine(), HERE.versions(), problem, HERE.usable(target))


def profile(
    name: str, model_class: type[PreTrainedModel], config: PretrainedConfig, space: SearchSpace, tokens: int, target: Target,
    deployment: Deployment, settings: ProfileSection, seed: int,
) -> tuple[LatencyTable, bytes, list[str]]:  # fmt: skip
    """A table measured on this node, every run it was made from as its file holds them, and what was reported.

    Args:
        name: of what is profiled; what was measured of it here before an interruption counts.
        model_class, config: of the model, whose weights do not matter.
    """
    lines: list[str] = []
    folder = _folder(name)
    prober = Prober(model_class(config).eval(), space, tokens, folder, lines.append, seed=seed)
    table = prober.table(target, deployment, settings, folder / "tables", seed=seed)
    return table, (folder / "tables" / table.raw_name).read_bytes(), lines


def forget(name: str) -> None:
    """Remove the files of what was profiled here under that name."""
    shutil.rmtree(_folder(name), ignore_errors=True)


def _folder(name: str) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "instatune-deploy" / "probes" / name


@dataclass(frozen=True)
class Files:
    """A model's file and those that it needs beside it, by their names; `main` is the one that a runtime loads."""

    main: str
    contents: dict[str, np.ndarray]

    def write(self, folder: Path) -> Path:
        """Write them into the new `folder`; returns the file to load."""
        folder.mkdir()
        for name, content in self.contents.items():
            content.tofile(folder / name)
        return folder / self.main


def run_file(files: Files, deployment: Deployment, batches: Sequence[Inputs]) -> list[Outputs]:
    """What a model's file puts out for `batches`."""
    with tempfile.TemporaryDirectory(prefix="instatune-node-") as folder:
        return list(HERE.outputs(files.write(Path(folder, "model")), deployment, batches))


def measure(
    models: Mapping[str, Files], inputs: dict[str, np.ndarray], deployment: Deployment, visits: Mapping[str, int] | None,
    sure: Sequence[str] | None, seed: int, settings: TimingSettings | None,
) -> Measurement:  # fmt: skip
    """The latency of models' files; see `timing.measure`."""
    with tempfile.TemporaryDirectory(prefix="instatune-node-") as folder:
        paths = {name: files.write(Path(folder, str(number))) for number, (name, files) in enumerate(models.items())}
        return HERE.measure(paths, inputs, deployment, visits=visits, sure=sure, seed=seed, settings=settings)

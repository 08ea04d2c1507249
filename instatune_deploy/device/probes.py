"""`ProbeFiles`: files of networks with random weights, made when first asked for and shared by all deployments."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.template import NotUnderstoodError, Template
from instatune_deploy.device.lowering.template_onnx import layer_exits, read_onnx, write_network_onnx
from instatune_deploy.device.lowering.template_openvino import read_ir, write_network_ir
from instatune_deploy.device.lowering.torch import export_torch
from instatune_deploy.device.lowering.variants import FILES, ONNX, lower, reads_images
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import TRANSFORMER, Architecture, LayerChoice, SearchSpace

if TYPE_CHECKING:
    import torch

#: Values after which the noise in weights repeats: within the window of a zip's compression, and no power of two.
_TILE = 1021


class ProbeFiles:
    """Networks of one model signature, as files that runtimes load.

    One network of three unequal layers is exported, converted and quantised for real; the others' files are written
    after its (see `Template`), with the same operations as a real export. A network that does not allow that is
    exported for real each time.

    Args:
        build: makes a network of an architecture, with weights of its own: they are changed here and do not matter.
        example_inputs: inputs by name, batch first, to trace it and to calibrate its quantisation with.
        directory: where the files go; those already there are used, so it must belong to this signature alone.
        space: the choices that the networks are of; None: each one is exported for real.

    `made_s` is how many seconds making files took.
    """

    def __init__(
        self,
        build: Callable[[Architecture], torch.nn.Module],
        example_inputs: dict[str, torch.Tensor],
        directory: Path,
        space: SearchSpace | None = None,
    ) -> None:
        self._build = build
        self._example_inputs = example_inputs
        self._directory = directory
        self._choices = template_choices(space) if space is not None else ()
        self._templates: dict[str, Template | None] = {}
        self.made_s = 0.0

    def path(self, architecture: Architecture, deployment: Deployment) -> Path:
        """The file of `architecture` that `deployment` loads; makes it if it is not there yet.

        Raises:
            ArtifactError: the network cannot be exported or quantised.
            MeasurementError: networks cannot be lowered for this runtime and precision.
        """
        file = get_runtime(deployment.runtime).model_file(deployment)
        if deployment.runtime == "torch":
            return self._torch_file(architecture, deployment.precision, file)
        if deployment.runtime not in ("onnxruntime", "openvino") or file not in FILES:
            raise MeasurementError(
                f"networks cannot be lowered for runtime {deployment.runtime!r} in {deployment.precision}"
            )
        started = time.monotonic()
        try:
            return self._file(architecture, file)
        finally:
            self.made_s += time.monotonic() - started

    def _file(self, architecture: Architecture, file: str) -> Path:
        """The `file` of `architecture`, after the template if there is one."""
        wanted = self._folder(architecture) / file
        if not wanted.is_file() and not self._write_after_template(architecture, wanted):
            self._make(architecture, file)
        return wanted

    def _torch_file(self, architecture: Architecture, precision: str, file: str) -> Path:
        """The archive that torch loads; not made after a template, for exporting it takes a second."""
        path = self._folder(architecture) / file
        started = time.monotonic()
        if not path.is_file():
            export_torch(_with_noise(self._build(architecture)), self._example_inputs, path, precision=precision)
        self.made_s += time.monotonic() - started
        return path

    def _folder(self, architecture: Architecture) -> Path:
        name = f"{architecture.depth}L-{hashlib.sha256(str(architecture).encode()).hexdigest()[:16]}"
        return self._directory / name

    def _write_after_template(self, architecture: Architecture, wanted: Path) -> bool:
        """Write the file `wanted` after the template; whether that was possible."""
        file = wanted.name
        try:
            if file not in self._templates:
                self._templates[file] = self._learn(file)
            template = self._templates[file]
            if template is None:
                return False
            network = template.network(architecture.layers)
        except NotUnderstoodError:
            self._templates.setdefault(file, None)
            return False
        write = write_network_onnx if wanted.suffix == ".onnx" else write_network_ir
        write(network, self._template_folder / file, wanted)
        return True

    @property
    def _template_folder(self) -> Path:
        return self._directory / "template"

    def _learn(self, file: str) -> Template:
        """The template for `file`.

        Raises:
            NotUnderstoodError: there is none.
        """
        if not self._choices:
            raise NotUnderstoodError("there are no two layers of a kind")
        architecture = Architecture(tuple(self._choices))
        folder = self._template_folder
        path = self._make(architecture, file, folder)
        network = read_onnx(path) if path.suffix == ".onnx" else read_ir(path)
        return Template(network, layer_exits(folder / ONNX, architecture.depth), self._choices)

    def _make(self, architecture: Architecture, file: str, folder: Path | None = None) -> Path:
        """`file` of `architecture`, in `folder`, exported, converted and quantised for real; what is there is used."""
        folder = folder or self._folder(architecture)
        path = folder / file
        if path.is_file():
            return path
        if file == ONNX:
            export_onnx(_with_noise(self._build(architecture)), self._example_inputs, path)
            return path
        self._make(architecture, ONNX, folder)
        calibration = [{name: value.numpy() for name, value in self._example_inputs.items()}]
        return lower(folder, file, calibration, image=reads_images(self._example_inputs), fast=True)


def template_choices(space: SearchSpace) -> Sequence[LayerChoice]:
    """Choices of the layers of the network to learn from; none if it would have fewer than two layers, or these are not
    all of one kind.

    Heads and neurons take their largest, their smallest and a middle value, and do not rise and fall together: a size
    that follows from the one does not follow from the other.
    """
    if space.dimensions != TRANSFORMER:
        return []
    heads, ffn = space.head_choices, space.ffn_choices
    middle_heads, middle_ffn = heads[len(heads) // 2], ffn[len(ffn) // 2]
    if space.layers < 3:
        choices = [(heads[-1], ffn[-1]), (heads[0], ffn[0])]
    else:
        choices = [(heads[-1], ffn[-1]), (heads[0], middle_ffn), (middle_heads, ffn[0])]
    return choices if space.layers > 1 else []


def _with_noise(network: torch.nn.Module) -> torch.nn.Module:
    """`network` with weights that are no trained network's, but none that a runtime could leave out or merge: fresh biases
    are all zeros and fresh norms all ones. The same noise over and over packs well into a kit."""
    import torch

    noise = 0.02 * torch.randn(_TILE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            tile = noise.roll(7 * number)
            repeated = tile.repeat(parameter.numel() // _TILE + 1)[: parameter.numel()].view_as(parameter)
            # A norm's weights are near one; nothing else starts there.
            parameter.copy_(repeated + (1 if bool((parameter == 1).all()) else 0))
    return network

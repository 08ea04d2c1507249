"""Files written after a template are those of a real export, in every format, but for the weights' values."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from instatune_deploy.device.lowering.template import Input, Network, NotUnderstoodError, Operation, Value
from instatune_deploy.device.lowering.template_onnx import layer_exits, read_onnx
from instatune_deploy.device.lowering.template_openvino import read_ir
from instatune_deploy.device.probes import ProbeFiles, template_choices
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.probing import probing_supernet
from instatune_deploy.errors import ArtifactError, MeasurementError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture, SearchSpace
from tests.helpers import Family, make_family

DEPLOYMENTS = [
    Deployment(runtime, precision) for runtime in ("onnxruntime", "openvino") for precision in ("fp32", "int8")
]
#: More unequal layers than the template has, two of them with equal heads; layers all alike.
ARCHITECTURES = [Architecture.parse(text) for text in ("4L[1-5 4-48 4-5 2-24]", "2L[3-16 3-16]")]
#: Families whose graphs differ in kind. DeBERTa's export takes long; where it has one head nothing is multiplied by their
#: number, so that a template needs two.
FEWEST_HEADS = {"bert": 1, "vit": 1, "beit": 1, "deberta-v2": 2, "beit3": 1, "beit3 with questions": 1}


def fingerprint(network: Network) -> int:
    """A number that is equal for networks that compute the same with other weights.

    Kinds of operations with their attributes, how they are connected, shapes and types of constants, and the values of
    those that are parameters rather than weights, noted shapes; which equal operations are shared does not count.
    """
    seen: dict[Operation, int] = {}

    def of(value: Value | None) -> int:
        if value is None or isinstance(value.node, Input):
            return hash(None if value is None else value.node.name)
        if isinstance(value.node, Operation):
            return hash((seen[value.node], value.port))
        array = value.node.array
        is_parameter = value.node.form in ("INT64", "i64", "i32")  # ONNX's INT32 are quantised biases
        return hash((value.node.form, array.shape, tuple(array.ravel().tolist()) if is_parameter else None))

    for operation in network.operations():
        operands = tuple(of(value) for value in operation.inputs)
        seen[operation] = hash((operation.kind, operands, operation.shapes))
    return hash(tuple((name, of(value)) for name, value in sorted(network.outputs.items())))


def read(path: Path) -> Network:
    return read_onnx(path) if path.suffix == ".onnx" else read_ir(path)


def optimised_operations(path: Path, directory: Path) -> Counter[str]:
    """Operations by type that the runtime really runs; not constants, of which equal ones may be one or several."""
    if path.suffix == ".xml":
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
        types = [str(op.rt_info["layerType"].value) for op in model.get_ops()]
        return Counter(kind for kind in types if kind != "Const")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(directory / "optimised.onnx").graph.node)


class Made:
    """A tiny family's probe files, written after a template and made for real."""

    def __init__(self, family: Family, fewest_heads: int, directory: Path) -> None:
        heads = tuple(tuple(count for count in layer if count >= fewest_heads) for layer in family.space.heads)
        self.space = replace(family.space, widths=(heads, family.space.ffn))
        self.architectures = [a for a in ARCHITECTURES if min(choice[0] for choice in a.layers) >= fewest_heads]
        supernet = probing_supernet(family.model, self.space)
        self.family, self.directory = family, directory
        self.built: list[Architecture] = []

        def build(architecture: Architecture) -> torch.nn.Module:
            self.built.append(architecture)
            return supernet.extract(architecture)

        self.written = ProbeFiles(build, family.inputs, directory / "written", self.space)
        self.real = ProbeFiles(supernet.extract, family.inputs, directory / "real")

    def both(self, architecture: Architecture, deployment: Deployment) -> tuple[Path, Path]:
        """The file written after the template and the real one."""
        return self.written.path(architecture, deployment), self.real.path(architecture, deployment)


@pytest.fixture(scope="module", params=list(FEWEST_HEADS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(make_family(request.param), FEWEST_HEADS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment.name)
def test_written_files_are_real_exports_with_other_weights(made: Made, deployment: Deployment) -> None:
    fingerprints = set()
    for architecture in made.architectures:
        written, real = made.both(architecture, deployment)
        fingerprints.add(fingerprint(read(written)))
        assert fingerprint(read(written)) == fingerprint(read(real)), architecture
        found, expected = (optimised_operations(path, made.directory) for path in (written, real))
        assert found == expected, architecture
        session = get_runtime(deployment.runtime).load(written, deployment)
        (output,) = session.run({name: value[:1].numpy() for name, value in made.family.inputs.items()})
        assert output.shape == (1, 3)
        assert np.isfinite(output).all()
    assert len(fingerprints) == len(made.architectures)
    assert made.built == [Architecture(tuple(template_choices(made.space)))]  # the template alone
    assert made.written.made_s > 0


def test_written_onnx_has_the_nodes_of_a_real_export(made: Made) -> None:
    """Not only the same expressions, but shared and unshared as the exporter does it; and it is valid."""
    for architecture in made.architectures:
        paths = made.both(architecture, Deployment("onnxruntime"))
        onnx.checker.check_model(paths[0], full_check=True)
        written, real = (onnx.load(path).graph for path in paths)
        nodes = [Counter((n.op_type, *sorted(map(str, n.attribute))) for n in graph.node) for graph in (written, real)]
        assert nodes[0] == nodes[1], architecture
        weights = [Counter((w.data_type, *w.dims) for w in graph.initializer) for graph in (written, real)]
        assert weights[0] == weights[1], architecture
        ends = [[str(v.type) + v.name for v in (*graph.input, *graph.output)] for graph in (written, real)]
        assert ends[0] == ends[1]


def test_layers_of_equal_choice_have_different_weights(made: Made) -> None:
    """Runtimes store equal weights once, which would make a network look faster than it is."""
    path = made.written.path(Architecture.uniform(8, 4, 48), Deployment("onnxruntime"))
    weights = [weight.raw_data for weight in onnx.load(path).graph.initializer if len(weight.raw_data) > 100]
    assert len(weights) > 8 * 12
    assert len(set(weights)) == len(weights)


def test_a_file_appears_only_when_complete(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    architecture = Architecture.uniform(2, 4, 24)
    for deployment in DEPLOYMENTS:
        made.written.path(made.architectures[0], deployment)  # the templates are there
        with monkeypatch.context() as patched:
            patched.setattr("os.replace", stop)
            with pytest.raises(KeyboardInterrupt):
                made.written.path(architecture, deployment)
    files = [made.written.path(architecture, deployment) for deployment in DEPLOYMENTS]
    names = {"model.onnx", "model_int8.onnx", "openvino_model.xml", "openvino_model_int8.xml"}
    assert {path.name for path in files} == names
    weights = {"openvino_model.bin", "openvino_model_int8.bin"}
    assert {path.name for path in files[0].parent.iterdir()} == names | weights


def test_layers_are_found_by_the_modules_that_the_exporter_notes(made: Made) -> None:
    architecture = made.architectures[0]
    path = made.real.path(architecture, Deployment("onnxruntime"))
    assert len(set(layer_exits(path, architecture.depth))) == architecture.depth
    with pytest.raises(NotUnderstoodError):
        layer_exits(path, 3)


class Twisted(torch.nn.Module):
    """Two layers, the second of which does more than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4))])
        self.layer[1].append(torch.nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_not_understood_is_exported_for_real(layers: int, tmp_path: Path) -> None:
    built: list[Architecture] = []

    def build(architecture: Architecture) -> torch.nn.Module:
        built.append(architecture)
        return Twisted()

    space = SearchSpace.homogeneous(layers, [layers], [1, 2], [8])
    files = ProbeFiles(build, {"x": torch.randn(2, 4)}, tmp_path, space)
    for deployment in DEPLOYMENTS:
        session = get_runtime(deployment.runtime).load(files.path(space.largest, deployment), deployment)
        assert session.run({"x": np.ones((3, 4), np.float32)})[0].shape == (3, 4)
    assert built[-1] == space.largest


def test_a_choice_that_the_template_does_not_tell_of_is_exported_for_real(tmp_path: Path) -> None:
    family = make_family("bert")
    supernet = probing_supernet(family.model, family.space)
    built: list[Architecture] = []

    def build(architecture: Architecture) -> torch.nn.Module:
        built.append(architecture)
        return supernet.extract(architecture)

    one_choice = SearchSpace.homogeneous(2, [1, 2], [2], [8])
    files = ProbeFiles(build, family.inputs, tmp_path, one_choice)
    files.path(Architecture.uniform(1, 2, 8), Deployment("onnxruntime"))
    assert built == [Architecture.uniform(2, 2, 8)]
    files.path(Architecture.uniform(1, 4, 8), Deployment("onnxruntime"))
    assert built[1:] == [Architecture.uniform(1, 4, 8)]


def test_precisions_that_no_file_is_made_for(tmp_path: Path) -> None:
    files = ProbeFiles(lambda _: torch.nn.Identity(), {}, tmp_path)
    with pytest.raises(MeasurementError, match="bf16"):
        files.path(Architecture.uniform(1, 1, 1), Deployment("onnxruntime", "bf16"))
    with pytest.raises(ArtifactError):
        files.path(Architecture.uniform(1, 1, 1), Deployment("onnxruntime"))

"""Model repositories, held against what the servers' own definitions and the files in them say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest

from instatune_deploy.device.lowering.signature import read_signature
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.pretrained import load_config
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.errors import ArtifactError, UnknownNameError, UsageError
from instatune_deploy.repositories import triton_config, write_repository
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from tests.helpers import call_main
from tests.stages.test_export import export_tiny

TYPES = {"TYPE_INT64": "int64", "TYPE_FP32": "float32"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A text model for ONNX Runtime in int8, an image model for OpenVINO, and a text model of fixed sizes for it."""
    ways = {"text": Deployment("onnxruntime", "int8", threads=2), "image": Deployment("openvino")}
    made = {kind: export_tiny(kind, way, tmp_path_factory.mktemp(kind)) for kind, way in ways.items()}
    fixed = export_tiny("text", ways["image"], tmp_path_factory.mktemp("fixed"), fixed=FixedSizes(1, 16))
    return {**made, "fixed": fixed}


@pytest.mark.parametrize("kind", ["text", "image", "fixed"])
def test_tritons_own_definition_reads_the_configuration_and_the_graph_agrees(
    artifacts: dict[str, Artifact], kind: str, tmp_path: Path
) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    out = write_repository(artifacts[kind].directory, "triton", tmp_path / "models", name="tiny", max_batch=8)
    config = text_format.Parse((out / "tiny" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    deployment = artifacts[kind].manifest.deployment
    batch = () if kind == "fixed" else (-1,)  # which is Triton's
    # An answer of int8 texts would follow from what it is joined with.
    most = {"text": 1, "image": 8, "fixed": 0}[kind]
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", deployment.runtime, most)
    assert config.HasField("dynamic_batching") == (kind == "image")
    file = out / "tiny" / "1" / ("model.onnx" if kind == "text" else "model.xml")
    signature = read_signature(file)
    for said, graph in ((config.input, signature.inputs), (config.output, signature.outputs)):
        assert [tensor.name for tensor in said] == [tensor.name for tensor in graph]
        for tensor, own in zip(said, graph, strict=True):
            assert TYPES[model_config_pb2.DataType.Name(tensor.data_type)] == own.dtype
            assert (*batch, *tensor.dims) == own.dims
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    key = "intra_op_thread_count" if kind == "text" else "INFERENCE_NUM_THREADS"
    assert parameters[key] == str(deployment.threads)
    assert list(config.input[0].dims) == {"text": [-1], "image": [3, 8, 8], "fixed": [1, 16]}[kind]
    run_and_compare(file, artifacts[kind])


def run_and_compare(file: Path, artifact: Artifact) -> None:
    """A repository's file says what the artifact's does."""
    inputs = synthetic_inputs(load_config(str(artifact.directory)), 8, 3, seed=1)
    deployment = artifact.manifest.deployment
    outputs = []
    for path in (file, artifact.model_file()):
        session = get_runtime(deployment.runtime).load(path, deployment)
        outputs.append(session.run(inputs)[0])
        session.close()
    assert np.array_equal(*outputs)


def test_bf16_is_said_to_tritons_openvino_backend(artifacts: dict[str, Artifact]) -> None:
    signature = read_signature(artifacts["image"].model_file())
    assert "HINT_BF16" in triton_config("m", signature, Deployment("openvino", "bf16"), 4)
    assert "HINT_BF16" not in triton_config("m", signature, Deployment("openvino"), 4)


def test_openvino_model_servers_configuration_compiles_the_model(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    out = write_repository(artifacts["image"].directory, "ovms", tmp_path / "models", name="tiny")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "config.json", "tiny/1/model.bin", "tiny/1/model.xml",
    ]  # fmt: skip
    (entry,) = json.loads((out / "config.json").read_text())["model_config_list"]
    config = entry["config"]
    assert (config["name"], config["base_path"], config["target_device"]) == ("tiny", "/models/tiny", "CPU")
    # The server hands these options to OpenVINO as they are.
    openvino.Core().compile_model(out / "tiny" / "1" / "model.xml", "CPU", config["plugin_config"])
    assert config["plugin_config"]["INFERENCE_NUM_THREADS"] == "1"
    assert config["plugin_config"]["INFERENCE_PRECISION_HINT"] == "f32"


def test_what_cannot_be_laid_out_is_refused_and_leaves_nothing(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    text, out = artifacts["text"].directory, tmp_path / "models"
    for arguments, error, message in (
        (("tritn", "m"), UnknownNameError, "did you mean 'triton'"),
        (("ovms", "m"), UsageError, "was measured on ort-int8-2t"),
        (("triton", "a/b"), UsageError, "cannot be called 'a/b'"),
    ):
        with pytest.raises(error, match=message):
            write_repository(text, arguments[0], out, name=arguments[1])
        assert list(tmp_path.iterdir()) == []
    changed = Path(shutil.copytree(text, tmp_path / "changed"))
    with (changed / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        write_repository(changed, "triton", out, name="m")
    with pytest.raises(UsageError, match="exists already"):
        write_repository(text, "triton", changed, name="m")


def test_the_command_names_what_it_wrote(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("package", artifacts["text"].directory, "--for", "triton", "--out", tmp_path / "models", "--json")
    code, out, _ = call_main(monkeypatch, capsys, *arguments)
    assert code == 0
    assert json.loads(out)["files"] == ["model/1/model.onnx", "model/config.pbtxt"]

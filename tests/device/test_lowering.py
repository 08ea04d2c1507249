"""Exported files say what torch says, whatever the batch and length; counted MACs are the closed form's."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from instatune_deploy.device.lowering.lean import without_weights
from instatune_deploy.device.lowering.macs import count_macs_onnx
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.macs import count_macs

RUNTIMES = ["onnxruntime", "openvino"]


def outputs(tiny: Any, runtime: str, inputs: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the runtime and of torch."""
    session = get_runtime(runtime).load(tiny.onnx if runtime == "onnxruntime" else tiny.xml, Deployment(runtime))
    with torch.no_grad():
        expected = tiny.model(**inputs).logits.numpy()
    (found,) = session.run({name: value.numpy() for name, value in inputs.items()})
    return found, expected


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 16), (3, 16), (1, 7), (5, 40), (2, 2)])
def test_bert_equals_torch_at_any_batch_and_length(tiny_bert: Any, runtime: str, batch: int, tokens: int) -> None:
    inputs = tiny_bert.inputs(batch, tokens)
    inputs["attention_mask"][0, tokens - tokens // 3 :] = 0
    found, expected = outputs(tiny_bert, runtime, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_vit_equals_torch_at_any_batch(tiny_vit: Any, runtime: str, batch: int) -> None:
    found, expected = outputs(tiny_vit, runtime, {"pixel_values": torch.randn(batch, 3, 32, 32)})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_batch_and_length_may_be_equal_in_the_example(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert.model
    tiny = dataclasses.replace(tiny_bert, directory=tmp_path)
    export_onnx(model, tiny_bert.inputs(4, 4), tiny.onnx)
    to_openvino(tiny.onnx, tiny.xml)
    for runtime in RUNTIMES:
        found, expected = outputs(tiny, runtime, tiny_bert.inputs(3, 9))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_file_is_valid_self_contained_and_names_its_axes(tiny_bert: Any) -> None:
    onnx.checker.check_model(tiny_bert.onnx, full_check=True)
    assert sorted(p.name for p in tiny_bert.directory.iterdir()) == [
        "model.onnx",
        "openvino_model.bin",
        "openvino_model.xml",
    ]
    graph = onnx.load(tiny_bert.onnx).graph
    axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert axes == {name: ["batch", "sequence"] for name in tiny_bert.example}
    assert [v.name for v in graph.output] == ["logits"]
    assert sum(node.op_type == "Attention" for node in graph.node) == 2


def test_weights_written_by_hand_are_the_modules(tiny_vit: Any) -> None:
    stored = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tiny_vit.onnx).graph.initializer}
    for name, parameter in tiny_vit.model.named_parameters():
        if name in stored:
            np.testing.assert_array_equal(stored[name], parameter.detach().numpy(), err_msg=name)
    assert "vit.embeddings.patch_embeddings.projection.weight" in stored


def test_export_is_quiet_and_leaves_modes_and_logging_alone(
    tiny_bert: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_bert.model
    model.train()
    model.classifier.eval()
    before = logging.root.manager.disable
    capfd.readouterr()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            export_onnx(model, tiny_bert.example, tmp_path / "model.onnx")
        assert model.training
        assert not model.classifier.training
    finally:
        model.eval()
    assert caught == []
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


class DataDependent(torch.nn.Module):
    """Branches on values: cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class FixedBatch(torch.nn.Module):
    """Works for a batch of two only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)


@pytest.mark.parametrize("module", [DataDependent(), FixedBatch()])
def test_untraceable_network_is_one_line_and_leaves_no_file(module: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=type(module).__name__) as caught:
        export_onnx(module, {"x": torch.ones(2, 3)}, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_onnx_is_refused_by_openvino(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_bert_macs_on_the_graph_are_the_closed_form(tiny_bert: Any) -> None:
    shapes = dict.fromkeys(tiny_bert.example, (1, 16))
    assert count_macs_onnx(tiny_bert.onnx, shapes) == count_macs(tiny_bert.shape, tiny_bert.shape.full())


def test_vit_macs_on_the_graph_are_the_closed_form(tiny_vit: Any) -> None:
    found = count_macs_onnx(tiny_vit.onnx, {"pixel_values": (1, 3, 32, 32)})
    assert found == count_macs(tiny_vit.shape, tiny_vit.shape.full())


def test_macs_need_every_input_shape(tiny_bert: Any) -> None:
    with pytest.raises(ArtifactError, match="attention_mask"):
        count_macs_onnx(tiny_bert.onnx, {"input_ids": (1, 16)})


class Projected(torch.nn.Module):
    """One linear module for what comes in and for a table, as DeBERTa does with its relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(100, 96))
        self.linear = torch.nn.Linear(96, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) @ self.linear(self.table).T


def test_what_follows_from_weights_alone_is_computed_when_exporting(tmp_path: Path) -> None:
    model, x = Projected(), torch.randn(2, 96)
    export_onnx(model, {"x": x}, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sorted(node.op_type for node in graph.node if node.op_type != "Add") in (["Gemm", "MatMul"], ["MatMul"] * 2)
    session = get_runtime("onnxruntime").load(tmp_path / "model.onnx", Deployment("onnxruntime"))
    with torch.no_grad():
        np.testing.assert_allclose(session.run({"x": x.numpy()})[0], model(x).numpy(), atol=1e-4)
    assert count_macs_onnx(tmp_path / "model.onnx", {"x": (1, 96)}) == 96 * 96 + 96 * 100


@torch.jit.script
def halves(x: torch.Tensor) -> torch.Tensor:
    return x[:, : x.size(1) // 2]


class Scripted(torch.nn.Module):
    """Calls a compiled function that reads an axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return halves(x).sum(dim=1)


def test_compiled_functions_fix_no_axes_and_stay_compiled(tmp_path: Path) -> None:
    compiled = halves
    export_onnx(Scripted(), {"x": torch.ones(2, 8, dtype=torch.int64)}, tmp_path / "model.onnx")
    assert halves is compiled
    session = get_runtime("onnxruntime").load(tmp_path / "model.onnx", Deployment("onnxruntime"))
    assert session.run({"x": np.ones((3, 20), np.int64)})[0].tolist() == [10, 10, 10]


def test_weights_stay_in_their_file_and_the_network_is_the_same(tiny_bert: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export_onnx(tiny_bert.model, tiny_bert.inputs(2, 8), file)
    lean = tmp_path / "lean.onnx"
    lean.write_bytes(without_weights(file).SerializeToString())
    outside = [w for w in onnx.load(lean, load_external_data=False).graph.initializer if w.external_data]
    assert outside
    assert lean.stat().st_size < file.stat().st_size - sum(int(w.external_data[2].value) for w in outside) + 10_000
    whole, read = onnx.load(file), onnx.load(lean)
    assert {w.name: onnx.numpy_helper.to_array(w).tobytes() for w in whole.graph.initializer} == {
        w.name: onnx.numpy_helper.to_array(w).tobytes() for w in read.graph.initializer
    }
    assert [node.SerializeToString() for node in whole.graph.node] == [
        node.SerializeToString() for node in read.graph.node
    ]


@pytest.mark.parametrize(
    "content", [b"", b"no network", bytes(range(256)), b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"]
)
def test_what_is_no_network_is_not_converted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="openvino cannot convert"):
        to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

"""Files of fixed sizes take other batches and shorter texts all the same, and files of every opset say what torch says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from instatune_deploy.device.lowering.onnx import OPSETS, export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.lowering.signature import read_signature
from instatune_deploy.device.runtimes.base import Session, get_runtime
from instatune_deploy.errors import ArtifactError, MeasurementError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes

RUNTIMES = ["onnxruntime", "openvino"]


def load(runtime: str, folder: Path) -> Session:
    file = folder / ("model.onnx" if runtime == "onnxruntime" else "openvino_model.xml")
    return get_runtime(runtime).load(file, Deployment(runtime))


@pytest.fixture(scope="module")
def fixed_bert(tiny_bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixed")
    export_onnx(tiny_bert.model, tiny_bert.inputs(2, 16), folder / "model.onnx", fixed=FixedSizes(2, 16))
    to_openvino(folder / "model.onnx", folder / "openvino_model.xml")
    return folder


def test_fixed_sizes_are_the_files_own(fixed_bert: Path) -> None:
    for file in ("model.onnx", "openvino_model.xml"):
        signature = read_signature(fixed_bert / file)
        assert {tensor.dims for tensor in signature.inputs} == {(2, 16)}
        assert [tensor.dims for tensor in signature.outputs] == [(2, 3)]
    operators = {node.op_type for node in onnx.load(fixed_bert / "model.onnx").graph.node}
    assert not operators & {"Shape", "Range"}  # nothing is computed from sizes any more


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("batch", "tokens"), [(2, 16), (1, 16), (5, 16), (3, 7)])
def test_other_sizes_are_filled_up_and_cut(
    tiny_bert: Any, fixed_bert: Path, runtime: str, batch: int, tokens: int
) -> None:
    inputs = tiny_bert.inputs(batch, tokens)
    inputs["attention_mask"][0, tokens - tokens // 3 :] = 0
    (found,) = load(runtime, fixed_bert).run({name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        np.testing.assert_allclose(found, tiny_bert.model(**inputs).logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_longer_text_is_refused(tiny_bert: Any, fixed_bert: Path, runtime: str) -> None:
    with pytest.raises(MeasurementError, match="texts of 16 tokens, found 17"):
        load(runtime, fixed_bert).run({name: value.numpy() for name, value in tiny_bert.inputs(2, 17).items()})


class Tokens(torch.nn.Module):
    """Puts out something of every token, and as many numbers of every text as it has tokens."""

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.one_hot(ids, 3).float(), ids.float()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_of_tokens_are_of_those_that_were_given(tmp_path: Path, runtime: str) -> None:
    example = {"ids": torch.zeros(1, 8, dtype=torch.int64)}
    export_onnx(Tokens(), example, tmp_path / "model.onnx", outputs=("a", "b"), fixed=FixedSizes(1, 8))
    to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    ids = np.array([[1, 2, 0], [2, 2, 1]])
    classes, numbers = load(runtime, tmp_path).run({"ids": ids})
    np.testing.assert_array_equal(classes, np.eye(3, dtype=np.float32)[ids])
    np.testing.assert_array_equal(numbers, ids)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_of_images_is_cut(tiny_vit: Any, tmp_path: Path, runtime: str) -> None:
    images = torch.randn(3, 3, 32, 32)
    export_onnx(tiny_vit.model, {"pixel_values": images[:1]}, tmp_path / "model.onnx", fixed=FixedSizes(1))
    to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    (found,) = load(runtime, tmp_path).run({"pixel_values": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, tiny_vit.model(images).logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("opset", [OPSETS[0], 20])
def test_every_opset_says_what_torch_says(tiny_bert: Any, tmp_path: Path, opset: int) -> None:
    export_onnx(tiny_bert.model, tiny_bert.example, tmp_path / "model.onnx", opset=opset)
    to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    inputs = tiny_bert.inputs(3, 9)
    for runtime in RUNTIMES:
        (found,) = load(runtime, tmp_path).run({name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            np.testing.assert_allclose(found, tiny_bert.model(**inputs).logits.numpy(), atol=1e-4)


class Gelu(torch.nn.Module):
    """Has an operator that opset 18 spells out and opset 20 has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x)


def test_an_opset_that_the_exporter_does_not_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="opset"):
        export_onnx(Gelu(), {"x": torch.ones(2, 3)}, tmp_path / "model.onnx", opset=11)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sizes", [{}, {"batch": 0}, {"batch": 1, "tokens": -1}])
def test_sizes_are_positive(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        FixedSizes(**sizes)

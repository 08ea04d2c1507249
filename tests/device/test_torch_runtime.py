"""PyTorch as a runtime: its archives say what torch says and hold no code, and its GPU never becomes the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from instatune_deploy.device.lowering.half import to_fp16
from instatune_deploy.device.lowering.torch import export_torch, read_torch
from instatune_deploy.device.runtimes import torch as torch_runtime
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import ArtifactError, MeasurementError, TargetError
from instatune_deploy.values.deployment import Deployment

CPU, CUDA = Deployment("torch"), Deployment("torch", "bf16", device="cuda")
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs, which needs an NVIDIA GPU")

#: Largest difference of an output from the fp32 module's, for outputs of about one.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}


@pytest.fixture(scope="module")
def archives(tiny_bert: Any, tiny_vit: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Archives by family and precision."""
    directory, found = tmp_path_factory.mktemp("pt2"), {}
    for family, tiny, precision in (
        ("bert", tiny_bert, "fp32"), ("bert", tiny_bert, "bf16"), ("bert", tiny_bert, "fp16"), ("vit", tiny_vit, "bf16"),
    ):  # fmt: skip
        path = found[family, precision] = directory / family / f"model_{precision}.pt2"
        export_torch(tiny.model, tiny.example, path, precision=precision)
    return found


def masked_inputs(tiny: Any, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    inputs = tiny.inputs(batch, tokens)
    inputs["attention_mask"][0, tokens - tokens // 3 :] = 0
    return inputs


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in inputs.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 16), (5, 40), (2, 1)])
def test_archive_equals_torch_at_any_batch_and_length(
    tiny_bert: Any, archives: dict[tuple[str, str], Path], precision: str, batch: int, tokens: int
) -> None:
    inputs = masked_inputs(tiny_bert, batch, tokens)
    file = read_torch(archives["bert", precision])
    assert (file.inputs, file.precision) == (tuple(tiny_bert.example), precision)
    with torch.no_grad():
        (found,), expected = file.program.module(check_guards=False)(inputs), tiny_bert.model(**inputs).logits
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=TOLERANCE[precision])
    weights = {value.dtype for value in file.program.state_dict.values() if value.is_floating_point()}
    assert weights == {{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]}


def test_images_are_rounded_inside_the_network(tiny_vit: Any, archives: dict[tuple[str, str], Path]) -> None:
    session = get_runtime("torch").load(archives["vit", "bf16"], Deployment("torch", "bf16"))
    inputs = {"pixel_values": torch.randn(3, 3, 32, 32)}
    with torch.no_grad():
        expected = tiny_vit.model(**inputs).logits.numpy()
    (found,) = session.run(arrays(inputs))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE["bf16"])
    assert not np.array_equal(found, expected)


def test_exporting_leaves_the_module_as_it_was(tiny_bert: Any, tmp_path: Path) -> None:
    model = tiny_bert.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        export_torch(model, tiny_bert.example, tmp_path / "model_bf16.pt2", precision="bf16")
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert [path.name for path in tmp_path.iterdir()] == ["model_bf16.pt2"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_cannot_be_exported_leaves_what_was_there(tiny_bert: Any, tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    path = tmp_path / "model_fp32.pt2"
    path.write_text("old")
    with pytest.raises(ArtifactError, match="cannot export Branching") as caught:
        export_torch(Branching(), {"x": torch.ones(2, 3)}, path, precision="fp32")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="not in int8"):
        export_torch(tiny_bert.model, tiny_bert.example, path, precision="int8")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model_fp32.pt2", "old")]


def test_a_fresh_process_without_transformers_runs_it(
    tiny_bert: Any, archives: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    inputs = masked_inputs(tiny_bert, 2, 9)
    np.savez(tmp_path / "inputs.npz", **arrays(inputs))
    code = (
        "import sys, numpy as np; from pathlib import Path;"
        "from instatune_deploy.device.runtimes.base import get_runtime;"
        "from instatune_deploy.values.target import Deployment;"
        "session = get_runtime('torch').load(Path(sys.argv[1]), Deployment('torch'));"
        "np.save(sys.argv[3], session.run(dict(np.load(sys.argv[2])))[0]);"
        "assert 'transformers' not in sys.modules"
    )
    files = [str(archives["bert", "fp32"]), str(tmp_path / "inputs.npz"), str(tmp_path / "output.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=Path(__file__).parents[2])
    with torch.no_grad():
        expected = tiny_bert.model(**inputs).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), expected, atol=1e-5)


def rewritten(path: Path, destination: Path, change: Callable[[str, bytes], bytes], extra: str = "") -> Path:
    """A copy of the archive whose members went through `change` (member, content), with `extra` added."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(destination, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name.removeprefix(f"{root}/"), old.read(name)))
        if extra:
            new.writestr(f"{root}/{extra}", b"x")
    return destination


def in_json(member: str, change: Callable[[Any], Any]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, content: bytes) -> bytes:
        if name != member:
            return content
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return changed


def pickled_weight(index: Any) -> None:
    next(iter(index["config"].values()))["use_pickle"] = True


def other_operator(graph: Any) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def evaluated_size(graph: Any) -> None:
    text = json.dumps(graph).replace("Mul(Integer(32)", "Mul(exit(32)", 1)
    graph.clear()
    graph.update(json.loads(text))


@pytest.mark.parametrize(
    ("change", "extra", "reason"),
    [
        (lambda name, content: b"pickle" if "sample_inputs" in name else content, "", "example inputs are a pickle"),
        (in_json("data/weights/model_weights_config.json", pickled_weight), "", "is a pickle"),
        (in_json("models/model.json", other_operator), "", "graph holds 'torch.hub.load'"),
        (in_json("models/model.json", evaluated_size), "", r"graph holds .Mul\(exit"),
        (lambda name, content: content, "data/weights/model.pt", "it holds data/weights/model.pt"),
        (lambda name, content: content, "data/constants/custom_obj_0", "it holds data/constants/custom_obj_0"),
        (lambda name, content: content, "data/aotinductor/model/a.so", "it holds data/aotinductor"),
    ],
)
def test_an_archive_with_code_in_it_is_refused(
    archives: dict[tuple[str, str], Path], tmp_path: Path, change: Any, extra: str, reason: str
) -> None:
    path = rewritten(archives["bert", "fp32"], tmp_path / "model_fp32.pt2", change, extra)
    with pytest.raises(ArtifactError, match=f"is refused: .*{reason}") as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_absent_archives_are_one_line(archives: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model_fp32.pt2"
    whole = archives["bert", "fp32"].read_bytes()
    for content in (None, b"nothing of the kind", whole[: len(whole) // 2]):
        if content:
            path.write_bytes(content)
        with pytest.raises(ArtifactError, match=path.name) as caught:
            get_runtime("torch").load(path, CPU)
        assert "\n" not in str(caught.value)


def test_the_seam_holds_for_torch_too(tiny_bert: Any, archives: dict[tuple[str, str], Path]) -> None:
    session = get_runtime("torch").load(archives["bert", "fp32"], CPU)
    inputs = arrays(tiny_bert.inputs(2, 16))
    (expected,) = session.run(inputs)
    kept = expected.copy()
    np.testing.assert_array_equal(session.run({**inputs, "labels": np.zeros(2)})[0], expected)
    assert not np.allclose(session.run({**inputs, "input_ids": (inputs["input_ids"] + 7) % 100})[0], expected)
    np.testing.assert_array_equal(expected, kept)
    inputs["input_ids"].flags.writeable = False
    np.testing.assert_array_equal(session.run(inputs)[0], expected)
    del inputs["attention_mask"]
    with pytest.raises(MeasurementError, match="needs input attention_mask"):
        session.run(inputs)
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        session.run(inputs)


def test_threads_are_the_deployments(archives: dict[tuple[str, str], Path]) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            get_runtime("torch").load(archives["bert", "fp32"], Deployment("torch", threads=threads))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_precision_is_never_silently_another(archives: dict[tuple[str, str], Path]) -> None:
    runtime = get_runtime("torch")
    with pytest.raises(TargetError, match=r"torch-bf16-1t: .*model_fp32\.pt2 computes in fp32"):
        runtime.load(archives["bert", "fp32"], Deployment("torch", "bf16"))
    with pytest.raises(TargetError, match="torch does not compute in int8 on cpu"):
        runtime.load(archives["bert", "fp32"], Deployment("torch", "int8"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_without_a_gpu_the_cpu_does_not_step_in(archives: dict[tuple[str, str], Path]) -> None:
    with pytest.raises(TargetError, match=r"needs an NVIDIA GPU: torch\.cuda\.is_available\(\) is False"):
        get_runtime("torch").load(archives["bert", "bf16"], CUDA)


def test_everything_in_an_archive_moves_to_another_device(
    archives: dict[tuple[str, str], Path], tiny_bert: Any
) -> None:
    """What stayed on the CPU would fail to mix with what moved; ``meta`` is a device that every machine has."""
    from torch.export.passes import move_to_device_pass

    moved = move_to_device_pass(read_torch(archives["bert", "bf16"]).program, "meta").module(check_guards=False)
    (output,) = moved({name: value.to("meta") for name, value in tiny_bert.inputs(3, 9).items()})
    assert (output.device.type, output.shape) == ("meta", (3, 3))


def test_a_graph_is_captured_once_for_each_shape_and_the_oldest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []

    class Capture:
        def __init__(self, network: Any, inputs: dict[str, np.ndarray]) -> None:
            captured.append(inputs["x"].shape[1])

        def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
            return (inputs["x"],)

    monkeypatch.setattr(torch_runtime, "CapturedGraph", Capture)
    session = torch_runtime.CudaGraphSession(Path("model_bf16.pt2"), lambda inputs: (inputs["x"],), ("x",))
    for size in (1, 2, 1, 3, 4, 5, 6, 7, 8, 8, 9, 2, 1):
        assert session.run({"x": np.zeros((1, size))})[0].shape == (1, size)
    assert captured == [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]


@ON_GPU
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_cuda_graph_equals_torch_at_every_shape(
    tiny_bert: Any, archives: dict[tuple[str, str], Path], precision: str
) -> None:
    session = get_runtime("torch").load(archives["bert", precision], Deployment("torch", precision, device="cuda"))
    for batch, tokens in ((1, 16), (4, 9), (1, 16), (1, 17), *((2, n) for n in range(2, 12))):
        inputs = masked_inputs(tiny_bert, batch, tokens)
        with torch.no_grad():
            expected = tiny_bert.model(**inputs).logits.numpy()
        np.testing.assert_allclose(session.run(arrays(inputs))[0], expected, atol=TOLERANCE[precision])
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        session.run(arrays(inputs))


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_fp16_onnx_is_half_keeps_its_inputs_and_says_what_torch_says(
    tiny_bert: Any, tiny_vit: Any, tmp_path: Path, family: str
) -> None:
    tiny = {"bert": tiny_bert, "vit": tiny_vit}[family]
    path = tmp_path / "model_fp16.onnx"
    to_fp16(tiny.onnx, path)
    assert [p.name for p in tmp_path.iterdir()] == ["model_fp16.onnx"]
    onnx.checker.check_model(path, full_check=True)
    old, new = onnx.load(tiny.onnx).graph, onnx.load(path).graph
    for side in ("input", "output"):
        assert list(getattr(new, side)) == list(getattr(old, side))
    assert onnx.TensorProto.FLOAT not in {weight.data_type for weight in new.initializer if len(weight.dims) > 1}
    inputs = masked_inputs(tiny, 3, 12) if family == "bert" else {"pixel_values": torch.randn(3, 3, 32, 32)}
    with torch.no_grad():
        expected = tiny.model(**inputs).logits.numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, arrays(inputs))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE["fp16"])


def test_what_is_no_onnx_file_is_not_halved(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"cannot convert .*model\.onnx to fp16"):
        to_fp16(tmp_path / "model.onnx", tmp_path / "model_fp16.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]

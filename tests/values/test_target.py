"""Targets: the files that ship, and files that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from instatune_deploy.errors import TargetError, UnknownNameError
from instatune_deploy.values.deployment import PRECISIONS, Deployment, Precision
from instatune_deploy.values.target import find_target, in_batches, read_target

SHIPPED = Path(__file__).parents[2] / "targets"
GOOD = "name: t\ndescription: d\ndevice: cpu\ndeployments:\n  - {runtime: onnxruntime}\n"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_target_reads(path: Path) -> None:
    target = read_target(path)
    assert target.name == path.stem
    assert find_target(target.name, [Path("nowhere"), SHIPPED]) == find_target(str(path), []) == target


def test_a_deployment_is_named_by_what_it_is() -> None:
    assert Deployment("onnxruntime").name == "ort-fp32-1t"
    assert Deployment("openvino", "bf16", 4, 8).name == "ov-bf16-4t-b8"
    assert Deployment("torch", "bf16", batch=32, device="cuda").name == "torch-bf16-cuda-b32"


def test_the_shipped_targets_are_those_promised() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {
        "cpu-avx512", "cpu-avx512-vnni", "cpu-avx512-bf16", "cpu-avx2", "cpu-amx", "cpu-arm-neon",
        "gpu-cuda", "gpu-cuda-h200", "gpu-openvino", "npu-openvino",
    }  # fmt: skip


def test_a_targets_accelerator_workload_and_deployments_are_data() -> None:
    target = read_target(SHIPPED / "gpu-cuda-h200.yaml")
    assert (target.device, target.accelerator, target.instruction_sets) == ("gpu", "H200", ())
    assert [d.name for d in target.deployments[:2]] == ["torch-bf16-cuda", "torch-bf16-cuda-b32"]
    assert target.workload.sequence_length == 128


def test_every_runtime_says_what_it_computes_in_and_where() -> None:
    for runtime, device in PRECISIONS:
        for precision in get_args(Precision):
            deployment = Deployment(runtime, precision, device=device)
            assert (deployment.misfit is None) == (precision in PRECISIONS[runtime, device])
    assert "does not compute on cuda; it does on cpu, gpu, npu" in (Deployment("openvino", device="cuda").misfit or "")


def test_a_users_file_in_targets_comes_before_a_shipped_one_and_equals_it_by_path(tmp_path: Path) -> None:
    mine = tmp_path / "cpu-avx2.yaml"
    mine.write_text(GOOD.replace("name: t", "name: cpu-avx2"))
    assert find_target("cpu-avx2", [tmp_path, SHIPPED]) == find_target(str(mine), []) == read_target(mine)


def test_a_file_found_by_name_describes_the_target_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    with pytest.raises(TargetError, match=r"mine\.yaml: name: is 't'; the file of a target has its name, t\.yaml"):
        find_target("mine", [tmp_path])
    assert find_target(str(tmp_path / "mine.yaml"), []).name == "t"


def test_a_target_in_batches_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD)
    found = find_target("t-b8", [tmp_path])
    assert found == in_batches(find_target("t", [tmp_path]), 8)
    assert [deployment.name for deployment in found.deployments] == ["ort-fp32-1t-b8"]
    (tmp_path / "t-b8.yaml").write_text(GOOD.replace("name: t", "name: t-b8"))
    assert find_target("t-b8", [tmp_path]).deployments[0].batch == 1
    for name in ("t-b1", "t-b0", "none-b8"):  # in batches of one it is itself
        with pytest.raises(UnknownNameError):
            find_target(name, [tmp_path])


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("device: cpu", "device: tpu", "device"),
        ("name: t\n", "", "name"),
        ("runtime: onnxruntime", "runtime: onnxruntim", "deployments.0.runtime"),
        ("runtime: onnxruntime", "runtime: onnxruntime, thread: 2", "deployments.0.thread"),
        ("description: d", "description: d\ncolour: red", "colour"),
        ("  - {runtime: onnxruntime}\n", "  - {runtime: onnxruntime}\n  - {runtime: onnxruntime}\n", "distinct"),
        ("deployments:\n  - {runtime: onnxruntime}\n", "deployments: []\n", "at least one"),
        ("name: t", "name: [", "expected"),
        (
            "runtime: onnxruntime",
            "runtime: onnxruntime, precision: bf16",
            r"deployments\.0: onnxruntime .* bf16 on cpu",
        ),
        ("runtime: onnxruntime", "runtime: openvino, precision: fp16", r"deployments\.0: openvino .* fp16 on cpu"),
        ("runtime: onnxruntime", "runtime: openvino, device: cuda", r"deployments\.0: openvino .* on cuda"),
        ("runtime: onnxruntime", "runtime: torch, device: cuda", r"deployments\.0\.device: .* found cuda"),
        ("runtime: onnxruntime", "runtime: onnxruntime, threads: 0", r"deployments\.0: threads and batch"),
        ("runtime: onnxruntime", "runtime: onnxruntime, batch: 0", r"deployments\.0: threads and batch"),
        ("runtime: onnxruntime", "runtime: fake", r"deployments\.0\.runtime: fake"),
        ("device: cpu", "device: gpu", r"deployments\.0\.device: .* computes on cuda, tensorrt, gpu, found cpu"),
        ("device: cpu", "device: cpu\naccelerator: H200", "accelerator: a target with device cpu"),
        ("device: cpu", "device: gpu\naccelerator: ''", "accelerator: must be"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD)
    assert read_target(path).deployments == (Deployment("onnxruntime"),)
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(TargetError, match=field) as caught:
        read_target(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.yaml"):
        find_target(str(tmp_path / "none.yaml"), [])


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'cpu-avx2'"):
        find_target("cpu-avx", [SHIPPED])

"""What the machine offers, and what a target lacks on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.device import fingerprint, machine_facts
from instatune_deploy.device.fingerprint import check_target, detect, runtime_versions, usable_deployments
from instatune_deploy.errors import TargetError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.target import Target

MACHINE = Machine("Some CPU", "x86_64", 2, ("avx2", "fma"), 1 << 34, 0.5)
TARGET = Target(
    "cpu-amx",
    "",
    "cpu",
    (
        Deployment("openvino"),
        Deployment("openvino", "bf16", needs=("amx_bf16",)),
        Deployment("onnxruntime", threads=4),
    ),
    ("avx2", "amx_tile", "amx_bf16"),
)


def test_detect_describes_this_machine() -> None:
    machine = detect()
    assert machine.logical_cpus >= 1
    assert machine.memory_bytes > 0
    assert machine.cpu_model
    assert list(machine.instruction_sets) == sorted(set(machine.instruction_sets))


@pytest.mark.parametrize(
    ("cpuinfo", "model", "sets"),
    [
        (
            "processor : 0\nmodel name : Intel X\nflags\t: fpu sse4_2 AVX512F amx_tile aes f16c hypervisor\n\nprocessor : 1\n",
            "Intel X",
            ("amx_tile", "avx512f", "f16c", "sse4_2"),
        ),
        ("processor : 0\nFeatures : fp asimd evtstrm sve i8mm bf16\n\n", None, ("asimd", "bf16", "i8mm", "sve")),
        (None, None, ()),
    ],
)
def test_cpuinfo_of_every_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path, cpuinfo: str | None, model: str | None, sets: tuple[str, ...]
) -> None:
    monkeypatch.setattr(machine_facts, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    machine = detect()
    assert machine.instruction_sets == sets
    assert machine.cpu_model == model if model else machine.cpu_model


def test_versions_name_what_latency_depends_on() -> None:
    assert {"onnxruntime", "openvino", "torch", "transformers", "python"} <= runtime_versions().keys()


def test_target_is_refused_naming_what_lacks() -> None:
    with pytest.raises(
        TargetError, match=r"^target cpu-amx needs amx_tile, amx_bf16, which this machine \(Some CPU\) lacks$"
    ):
        check_target(TARGET, MACHINE)
    check_target(TARGET, dataclasses.replace(MACHINE, instruction_sets=TARGET.instruction_sets))


def test_deployments_that_make_no_sense_are_skipped_with_a_reason() -> None:
    usable, skipped = usable_deployments(TARGET, MACHINE)
    assert [d.name for d in usable] == ["ov-fp32-1t"]
    assert [line.split(" skipped:")[0] for line in skipped] == ["ov-bf16-1t", "ort-fp32-4t"]
    assert "amx_bf16" in skipped[0]


GPU_TARGET = Target(
    "gpu-cuda",
    "",
    "gpu",
    (Deployment("torch", "bf16", device="cuda"), Deployment("onnxruntime", device="cuda")),
    accelerator="h200",
)
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")


@pytest.fixture
def _fresh_look() -> Iterator[None]:
    """Accelerators are looked for once a process."""
    fingerprint.accelerators.cache_clear()
    yield
    fingerprint.accelerators.cache_clear()


@pytest.mark.usefixtures("_fresh_look")
@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo NVIDIA H200\necho NVIDIA H200\n", ("cuda: NVIDIA H200",)),
        ("echo 'NVIDIA-SMI has failed: no driver'\nexit 9\n", ()),
        (None, ()),
    ],
)
def test_nvidia_gpus_are_those_that_their_driver_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, found: tuple[str, ...]
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine_facts, "DEVICES", tmp_path)
    assert detect().accelerators == found


@pytest.mark.usefixtures("_fresh_look")
def test_openvino_is_asked_only_where_there_are_device_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import openvino

    class Core:
        available_devices = ("CPU", "GPU.0", "GPU.1", "NPU")

        def get_property(self, device: str, name: str) -> str:
            assert name == "FULL_DEVICE_NAME"
            return {"GPU.0": "Intel(R) Iris(R) Xe", "GPU.1": "Intel(R) Arc(TM)", "NPU": "Intel(R) AI Boost"}[device]

    monkeypatch.setattr(openvino, "Core", Core)
    monkeypatch.setattr(machine_facts, "DEVICES", tmp_path)
    assert machine_facts.openvino_devices() == []
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert machine_facts.openvino_devices() == [
        "openvino gpu: Intel(R) Iris(R) Xe", "openvino gpu: Intel(R) Arc(TM)", "openvino npu: Intel(R) AI Boost",
    ]  # fmt: skip


def test_a_missing_accelerator_is_named_beside_those_there_are() -> None:
    with pytest.raises(
        TargetError, match=r"needs a GPU with 'h200' in its name, which this machine lacks; found: none$"
    ):
        check_target(GPU_TARGET, MACHINE)
    other = dataclasses.replace(MACHINE, accelerators=("cuda: NVIDIA L4",))
    with pytest.raises(TargetError, match="found: cuda: NVIDIA L4"):
        check_target(GPU_TARGET, other)


@NO_CUDA
def test_a_gpu_without_its_runtimes_is_refused_with_what_to_install() -> None:
    machine = dataclasses.replace(MACHINE, accelerators=("cuda: NVIDIA H200",))
    usable, skipped = usable_deployments(GPU_TARGET, machine)
    assert usable == []
    assert "torch-bf16-cuda skipped: needs an NVIDIA GPU" in skipped[0]
    assert "pip install onnxruntime-gpu" in skipped[1]
    with pytest.raises(
        TargetError, match="target gpu-cuda has no deployment for this machine: torch-bf16-cuda skipped"
    ):
        check_target(GPU_TARGET, machine)


def test_a_version_is_that_of_the_distribution_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine_facts.PACKAGES, "onnxruntime", ("no-such-distribution", "numpy"))
    assert runtime_versions()["onnxruntime"] == np.__version__

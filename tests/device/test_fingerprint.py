"""What the machine offers, and what a target lacks on it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.device import control_groups, cpu_model, fingerprint, machine_facts
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


#: As recorded from a Graviton3, a Raspberry Pi 5 and a board with an RK3588, the features shortened.
GRAVITON3 = """\
processor\t: {cpu}
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm asimdhp asimddp sve svei8mm svebf16 i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

"""
RASPBERRY_PI_5 = """\
processor\t: {cpu}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
RK3588 = """\
processor\t: {cpu}
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}
CPU revision\t: 0

"""
PI_BOARD = "Revision\t: c04170\nSerial\t\t: 7d34abef\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
BIG_LITTLE = "".join(RK3588.format(cpu=n, variant="0x2", part="0xd05") for n in range(4)) + "".join(
    RK3588.format(cpu=n, variant="0x4", part="0xd0b") for n in range(4, 8)
)
#: Kernels before 3.8 say of all CPUs together what they are.
OLD_32_BIT = (
    "Processor : ARMv7 Processor rev 0 (v7l)\nprocessor : 0\nBogoMIPS : 1590\n\nprocessor : 1\nBogoMIPS : 1590\n\n"
    "Features : swp half thumb neon vfpv3\nCPU implementer : 0x41\nCPU part : 0xc09\n\nHardware : some board\n"
)


@pytest.mark.parametrize(
    ("cpuinfo", "cpus", "model"),
    [
        ("".join(GRAVITON3.format(cpu=n) for n in range(2)), [0, 1], "Arm Neoverse-V1"),
        ("".join(RASPBERRY_PI_5.format(cpu=n) for n in range(4)) + PI_BOARD, [0, 1, 2, 3], "Arm Cortex-A76"),
        (BIG_LITTLE, list(range(8)), "Arm Cortex-A55 + Arm Cortex-A76"),
        (BIG_LITTLE, [4, 5], "Arm Cortex-A76"),
        (BIG_LITTLE, [90], "Arm Cortex-A55 + Arm Cortex-A76"),
        (RK3588.format(cpu=0, variant="0x0", part="0xfff"), [0], "Arm CPU of implementer 0x41, part 0xfff"),
        (OLD_32_BIT, [0, 1], "Arm Cortex-A9"),
    ],
)
def test_arm_cpus_are_named_by_their_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str, cpus: list[int], model: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine_facts, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine_facts, "available_cpus", lambda: cpus)
    machine = detect()
    assert machine.cpu_model == model
    assert machine.logical_cpus == len(cpus)
    assert {"asimddp", "neon"} & set(machine.instruction_sets)


def test_macos_is_asked_for_its_cpus_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sysctl").write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo Apple M2\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu_model._apple_name.cache_clear()
    assert cpu_model.cpu_model([], []) == "Apple M2"
    cpu_model._apple_name.cache_clear()


def test_memory_is_what_a_container_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path)
    whole = detect().memory_bytes
    (tmp_path / "memory.max").write_text("1000000\n")
    assert detect().memory_bytes == 1_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert detect().memory_bytes == whole


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

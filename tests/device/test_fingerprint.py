"""What the machine offers, and what a target lacks on it."""

from __future__ import annotations

import dataclasses

import pytest

from instatune_deploy.device import fingerprint
from instatune_deploy.device.fingerprint import check_target, detect, runtime_versions, usable_deployments
from instatune_deploy.errors import TargetError
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.target import Deployment, Target

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
    monkeypatch.setattr(fingerprint, "_CPUINFO", tmp_path / "cpuinfo")
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

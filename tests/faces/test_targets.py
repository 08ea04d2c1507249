"""`targets`: what there is, what each needs, and what this machine can serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import instatune_deploy.faces.cli.targets  # noqa: F401  (adds its verbs to the app)
from instatune_deploy.device import fingerprint
from instatune_deploy.faces.cli.app import app
from instatune_deploy.values.latency import Machine

MINE = """
name: my-box
description: two deployments, of which the machine below can run one
device: cpu
instruction_sets: [avx2]
deployments:
  - {runtime: onnxruntime, threads: 2, batch: 8}
  - {runtime: openvino, precision: bf16, needs: [avx512_bf16]}
workload: {sequence_length: 64}
"""


@pytest.fixture(autouse=True)
def _my_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a target of the user's own, on a machine with AVX2 and a GPU that no runtime here can use."""
    machine = Machine("Some CPU", "x86_64", 2, ("avx2", "fma"), 1 << 34, 0.5, ("cuda: NVIDIA L4",))
    monkeypatch.setattr(fingerprint, "detect", lambda: machine)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "my-box.yaml").write_text(MINE)


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["targets", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_names_shipped_targets_and_the_users() -> None:
    names = [line.split()[0] for line in said("list").splitlines()]
    assert {"cpu-avx512", "gpu-cuda-h200", "npu-openvino", "my-box"} <= set(names)
    assert json.loads(said("list", "--json"))["my-box"].startswith("two deployments")


def test_show_says_all_that_the_file_says() -> None:
    assert said("show", "my-box").splitlines() == [
        "my-box: two deployments, of which the machine below can run one",
        "device: cpu",
        "needs: avx2",
        "workload: 64 tokens, 224 pixels a side",
        "deployment ort-fp32-2t-b8: onnxruntime on cpu, fp32, 2 threads, batch 8",
        "deployment ov-bf16-1t: openvino on cpu, bf16, 1 thread, batch 1 (where the CPU has avx512_bf16)",
    ]
    shown = json.loads(said("show", "targets/my-box.yaml", "--json"))
    assert shown["deployments"][0]["name"] == "ort-fp32-2t-b8"
    assert shown["workload"]["sequence_length"] == 64
    assert "accelerator: H200" in said("show", "gpu-cuda-h200")


def test_detect_says_what_can_be_served_by_which_deployments_and_why_not() -> None:
    found = json.loads(said("detect", "--json"))
    assert found["my-box"]["deployments"] == ["ort-fp32-2t-b8"]
    assert found["my-box"]["skipped"] == ["ov-bf16-1t skipped: needs avx512_bf16, which Some CPU lacks"]
    assert "needs avx512f" in found["cpu-avx512"]["reason"]
    assert (
        "needs a GPU with 'H200' in its name, which this machine lacks; found: cuda: NVIDIA L4"
        in (found["gpu-cuda-h200"]["reason"])
    )
    lines = said("detect").splitlines()
    assert "my-box           yes: ort-fp32-2t-b8" in lines
    assert "                 ov-bf16-1t skipped: needs avx512_bf16, which Some CPU lacks" in lines

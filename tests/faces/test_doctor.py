"""`doctor`: what it finds on this machine, and what it makes of machines and installations that lack something."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest

from instatune_deploy import doctoring
from instatune_deploy.device import control_groups, surroundings, topology
from instatune_deploy.device.noise import BLOCKS, Noise, block_inputs, write_blocks
from instatune_deploy.device.runtimes.base import run_file
from instatune_deploy.device.surroundings import Surroundings
from instatune_deploy.device.trial import TRIED, try_runtimes
from instatune_deploy.doctoring import meaning, missing
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Disturbance
from tests.helpers import call_main

CALM = Disturbance(0.0, 0.0, 0.0, 0.0, 0.0)
NOISE = Noise("ort-fp32-1t", 5, 200, 10.0, 0.5, 3.0, 20.0, CALM)


def test_doctor_tries_the_runtimes_and_measures_the_noise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call_main(monkeypatch, capsys, "doctor", "--seconds", "0.5", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["well"] is True
    assert found["versions"]["torch"]
    assert found["runtimes"]["onnxruntime on cpu"] == {"works": True, "why_not": None}
    assert found["runtimes"]["openvino on cpu"] == {"works": True, "why_not": None}
    assert {f"{d.runtime} on {d.device}" for d in TRIED} == set(found["runtimes"])
    assert any(target["servable"] for target in found["targets"].values())
    noise = found["noise"]
    assert noise["networks"] == len(BLOCKS)
    assert noise["runs"] >= len(BLOCKS) * 8  # at least four rounds of two runs
    assert noise["floor_pct"] > 0
    assert noise["meaning"][0].startswith(noise["verdict"])


def test_what_is_missing_ends_in_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=99", "no-such-package>=1"])
    monkeypatch.setattr(doctoring, "try_runtimes", try_none)
    code, out, _ = call_main(monkeypatch, capsys, "doctor", "--seconds", "0")
    assert code == 1
    lines = [line.strip() for line in out.splitlines()]
    assert "no-such-package is not installed; for everything: pip install 'no-such-package>=1'" in lines
    assert any(line.startswith("numpy is ") and line.endswith("pip install 'numpy>=99'") for line in lines)
    assert "noise" not in out


def try_none() -> list[object]:
    return []


def test_extras_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["no-such-server>=1; extra == 'serve'", "no-such-linter; extra == 'dev'", "no-such-gpu; extra == 'cuda'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    assert [(lack.what, lack.install, lack.required) for lack in missing([])] == [
        ("no-such-server is not installed", "pip install 'instatune-deploy[serve]'", False)
    ]
    assert len(missing(["cuda: NVIDIA L4"])) == 2


def test_a_library_that_takes_its_process_down_is_told_from_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "onnxruntime.py"
    broken.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr("instatune_deploy.device.trial.TRIED", TRIED[:2])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = try_runtimes()
    assert [trial.works for trial in found] == [False, False]
    assert "it failed (signal 11)" in found[0].why


def test_a_file_of_the_users_that_is_called_like_a_runtime_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime.py", "numpy.py"):
        (tmp_path / name).write_text("raise RuntimeError('not a module of ours')\n")
    monkeypatch.setattr("instatune_deploy.device.trial.TRIED", TRIED[:1])
    monkeypatch.chdir(tmp_path)
    assert [(trial.works, trial.why) for trial in try_runtimes()] == [(True, "")]


def test_the_networks_are_what_both_runtimes_compute_alike(tmp_path: Path) -> None:
    write_blocks(tmp_path / "two.onnx", 2)
    (first,), (second,) = (
        run_file(tmp_path / "two.onnx", Deployment(runtime), block_inputs()) for runtime in ("onnxruntime", "openvino")
    )
    assert first.shape == (1, 128, 384)
    assert abs(first - second).max() < 1e-3
    assert abs(first).max() > 1


@pytest.mark.parametrize(
    ("noise", "line"),
    [
        (NOISE, "quiet: the same networks, loaded and measured again, differ by 0.50%"),
        (replace(NOISE, floor_pct=5.0), "profile at a quieter time or on another machine"),
        (replace(NOISE, spread_pct=40.0), "p90 is 40% above p50: budgets on p90 or p99 are about this machine's neighbours"),
        (replace(NOISE, disturbance=replace(CALM, others_cpus=1.5)), "meanwhile other processes used 1.50 CPUs"),
        (replace(NOISE, disturbance=replace(CALM, stolen_cpus=0.2)), "the hypervisor took 0.20 CPUs away"),
    ],
)  # fmt: skip
def test_noise_is_put_into_words(noise: Noise, line: str) -> None:
    assert any(said.startswith(line) for said in meaning(noise))


def test_surroundings_are_read_from_linux_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "CPUS", tmp_path / "system" / "cpu")
    monkeypatch.setattr(topology, "DEVICES", tmp_path)
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(surroundings, "available_cpus", lambda: [0, 1])
    nothing = Surroundings.read()
    assert (nothing.governors, nothing.quota_cpus, nothing.sibling_pairs, nothing.boost) == ((), None, None, None)
    assert nothing.advice == []
    for cpu in (0, 1):
        for name, text in (("cpufreq/scaling_governor", "powersave"), ("topology/thread_siblings_list", "0-1")):
            path = surroundings.CPUS / f"cpu{cpu}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    (surroundings.CPUS / "intel_pstate").mkdir()
    (surroundings.CPUS / "intel_pstate" / "no_turbo").write_text("1\n")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cpu.max").write_text("150000 100000\n")
    found = Surroundings.read()
    assert (found.governors, found.quota_cpus, found.sibling_pairs, found.boost) == (("powersave",), 1.5, True, False)
    assert [line.split()[0:3] for line in found.advice] == [
        ["the", "governor", "powersave"], ["a", "control", "group"], ["some", "of", "the"]
    ]  # fmt: skip
    (tmp_path / "cgroup" / "cpu.max").write_text("max 100000\n")
    assert Surroundings.read().quota_cpus is None

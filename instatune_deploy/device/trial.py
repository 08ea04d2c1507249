"""Whether a runtime really loads and runs here: tried in a process of its own, for a broken library may take it down."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instatune_deploy.device.noise import block_inputs, write_blocks
from instatune_deploy.device.process import how_it_ended, module_command, module_environment
from instatune_deploy.device.runtimes.base import get_runtime, run_file
from instatune_deploy.errors import InstatuneError
from instatune_deploy.values.deployment import Deployment

#: What is tried: every runtime on every device that it has.
TRIED = tuple(
    Deployment(runtime, precision, device=device)  # type: ignore[arg-type]
    for runtime, device, precision in (
        ("onnxruntime", "cpu", "fp32"),
        ("onnxruntime", "cuda", "fp32"),
        ("onnxruntime", "tensorrt", "fp32"),
        ("openvino", "cpu", "fp32"),
        ("openvino", "gpu", "fp32"),
        ("openvino", "npu", "fp16"),
        ("torch", "cpu", "fp32"),
        ("torch", "cuda", "fp32"),
    )
)
_TIMEOUT_S = 120
#: What a line of an answer begins with: libraries print lines of their own.
_ANSWER = "answer: "


@dataclass(frozen=True)
class Trial:
    """Whether `deployment` ran a small network; `why` not, in one line with what to install."""

    deployment: Deployment
    works: bool
    why: str = ""

    @property
    def name(self) -> str:
        """``onnxruntime on cpu``."""
        return f"{self.deployment.runtime} on {self.deployment.device}"


def try_runtimes() -> list[Trial]:
    """Try every runtime on every device; takes seconds, for each runtime is imported by a process of its own."""
    with tempfile.TemporaryDirectory(prefix="instatune-trial-") as directory:
        path = Path(directory) / "model.onnx"
        write_blocks(path, 1)
        runtimes = dict.fromkeys(deployment.runtime for deployment in TRIED)
        return [trial for name in runtimes for trial in _in_a_process(path, [d for d in TRIED if d.runtime == name])]


def _in_a_process(path: Path, deployments: Sequence[Deployment]) -> list[Trial]:
    """Try deployments of one runtime."""
    root = Path(__file__).resolve().parents[2]
    wanted = json.dumps([[d.runtime, d.precision, d.device] for d in deployments])
    try:
        done = subprocess.run(
            module_command(__name__, str(path), wanted), env=module_environment(deployments[0], root),
            timeout=_TIMEOUT_S, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Trial(deployment, works=False, why=f"it hung for {_TIMEOUT_S} s") for deployment in deployments]
    said = [json.loads(line[len(_ANSWER) :]) for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
    died = f"it failed ({how_it_ended(done.returncode)}): {last.strip()}"
    answers = [*said, *[died] * (len(deployments) - len(said))]
    return [Trial(d, works=not why, why=why) for d, why in zip(deployments, answers, strict=True)]


def main(path: str, wanted: str) -> None:
    """Run the network in `path` under each deployment of a JSON list, and print why one cannot be, a line each."""
    for runtime, precision, device in json.loads(wanted):
        print(_ANSWER + json.dumps(_refusal(Path(path), Deployment(runtime, precision, device=device))), flush=True)


def _refusal(path: Path, deployment: Deployment) -> str:
    """Why `deployment` cannot run the network in `path`; empty if it can."""
    try:
        missing = get_runtime(deployment.runtime).unavailable(deployment)
        if missing or deployment.runtime == "torch":  # which reads files of its own; that it loaded says enough
            return missing or ""
        run_file(path, deployment, block_inputs())
    except (InstatuneError, ImportError) as error:
        return " ".join(str(error).split())
    return ""

"""From a model of one's own and its data to an answer of a server, by the commands of README and docs/start.md alone.

``python -m tests.walkthrough`` walks in a temporary directory and prints what was typed. The package is installed already, which
is README's one command before these. The model is tiny, and the recipe that `init` drafts is shortened before it is run.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import COMMAND, TARGET, call_command, write_text_data, write_text_model

#: What makes a tiny model's job short.
QUICK = {
    "space": {"depths": [1, 2, 3], "heads": [2, 4], "ffn": [16, 64]},
    "finetune": {
        "teacher": {"epochs": 5, "learning_rate": 3.0e-3}, "epochs": 2, "learning_rate": 2.0e-3, "importance_rows": 64
    },
    "search": {"warm_start": 8, "rounds": 1, "batch": 4, "population": 20, "generations": 5, "deployed": 0},
    "profile": {"heldout": 2, "seconds": 0.5, "confirm_seconds": 0.5, "wait_seconds": 0},
}  # fmt: skip
TEXTS = ["a good film", "a bad film"]


def walk(directory: Path) -> tuple[list[str], dict[str, Any]]:
    """The commands typed in `directory`, and what the server answered."""
    write_text_model(directory / "my-model")
    write_text_data(directory / "train.parquet", 500, 1)
    (directory / "targets").mkdir()
    target = {**TARGET, "deployments": [{"runtime": "openvino"}]}  # so that any CPU can serve it, by one table
    (directory / "targets" / "cpu-test.yaml").write_text(yaml.safe_dump(target), encoding="utf-8")
    typed: list[str] = []

    def type_in(command: str) -> None:
        typed.append(command)
        found = call_command(directory, *shlex.split(command)[1:])
        assert found.code == 0, f"{command}\n{found.out}\n{found.err}"

    type_in("instatune-deploy init ./my-model train.parquet --target cpu-test --latency-budget 95%")
    recipe = directory / "recipe.yaml"
    drafted = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({**drafted, **QUICK}), encoding="utf-8")
    type_in("instatune-deploy run recipe.yaml")
    (artifact,) = directory.glob("runs/*/artifacts/cpu-test/p50-95pct")
    # Free ports, for other servers may run here: README's command takes 8080 and the next two.
    ports = " --http-port 0 --grpc-port 0 --metrics-port 0 --json"
    typed.append(f"instatune-deploy serve {artifact.relative_to(directory)}")
    server = subprocess.Popen(
        [*COMMAND, *shlex.split(typed[-1] + ports)[1:]], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        answer = _ask(f"http://{_started(server)['http']}/v2/models/model/infer", typed)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return typed, answer


def _started(server: subprocess.Popen[str]) -> dict[str, Any]:
    """Where a server listens, as it prints that."""
    text = ""
    assert server.stdout is not None
    for line in server.stdout:
        text += line
        if line.startswith("}"):
            found: dict[str, Any] = json.loads(text)
            return found
    raise AssertionError(f"the server ended: {text}")


def _ask(address: str, typed: list[str]) -> dict[str, Any]:
    """What the server answers to two texts."""
    body = json.dumps({"inputs": [{"name": "text", "shape": [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}]})
    typed.append(f"curl -H 'Content-Type: application/json' -d {shlex.quote(body)} {address}")
    request = urllib.request.Request(address, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        typed, answer = walk(Path(directory))
    print(json.dumps({"commands": typed, "answer": answer}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A runtime without networks, for tests of whatever stands above the seam: exact, repeatable and instant.

Its model file is JSON:

``ms``              latency of a run, or a list of latencies that successive runs take in turn, forever.
``inputs``          names of the inputs it has (default: none).
``exit_after``      the process ends at the run after that many, with exit code `exit_code` (default 3) or by `signal`.
``hang_s``          every run really takes that many seconds.

Time is the runtime's own: a run moves its clock on by exactly its latency, and nothing else does.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.device.runtimes.base import feed
from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.deployment import Deployment


class FakeRuntime:
    """Loads ``fake.json``."""

    name = "fake"

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.live = 0
        self.most_live = 0

    def model_file(self, deployment: Deployment) -> str:
        """See `Runtime.model_file`."""
        return "fake.json"

    def unavailable(self, deployment: Deployment) -> str | None:
        """See `Runtime.unavailable`."""
        return None

    def load(self, path: Path, deployment: Deployment) -> FakeSession:
        """See `Runtime.load`."""
        try:
            model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            session = FakeSession(self, path, model)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"fake runtime cannot load {path}: {error!r}") from None
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        return session

    def options(self, deployment: Deployment) -> dict[str, str]:
        """See `Runtime.options`."""
        return {"precision": deployment.precision, "threads": str(deployment.threads)}

    def clock(self) -> float:
        """See `Runtime.clock`."""
        return self.elapsed_s


class FakeSession:
    """A file's latencies; its one output is zeros of shape (batch, 2)."""

    def __init__(self, runtime: FakeRuntime, path: Path, model: dict[str, Any]) -> None:
        self._runtime, self._path, self._model = runtime, path, model
        latencies = model["ms"] if isinstance(model["ms"], list) else [model["ms"]]
        self._latencies_ms = [float(latency) for latency in latencies]
        self._runs = 0

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        feed(self._model.get("inputs", []), inputs, self._path)
        if self._runs >= self._model.get("exit_after", float("inf")):
            if "signal" in self._model:
                os.kill(os.getpid(), self._model["signal"])
            os._exit(self._model.get("exit_code", 3))
        time.sleep(self._model.get("hang_s", 0))
        self._runtime.elapsed_s += self._latencies_ms[self._runs % len(self._latencies_ms)] / 1000
        self._runs += 1
        batch = next((len(array) for array in inputs.values()), 1)
        return (np.zeros((batch, 2), np.float32),)

    def close(self) -> None:
        """See `Session.close`."""
        self._runtime.live -= 1

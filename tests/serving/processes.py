"""Servers in processes of their own, and artifacts for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.stages.export import Artifact, export
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.recipe import Task
from instatune_deploy.values.space import Architecture, SearchSpace
from tests.task_data import SECTIONS, TOKENS, write_body

ORT = Deployment("onnxruntime")
_MODELS: dict[Task, tuple[Any, int]] = {
    "text-classification": (AutoModelForSequenceClassification, 3),
    "text-regression": (AutoModelForSequenceClassification, 1),
    "token-classification": (AutoModelForTokenClassification, 4),
    "question-answering": (AutoModelForQuestionAnswering, 2),
}
_SPACE = SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])


def export_text(
    task: Task, directory: Path, architecture: str = "2L[4-64 2-16]", *, tokens: int = TOKENS,
    deployment: Deployment = ORT, fixed: FixedSizes | None = None,
) -> Artifact:  # fmt: skip
    """The artifact of an untrained sub-network for a task of texts, cut to `tokens`; its classes are ``LABEL_0`` and so on.

    Its weights are large enough to make a difference.
    """
    auto, classes = _MODELS[task]
    path = write_body(directory / "model")
    network = auto.from_pretrained(path, num_labels=classes)
    for parameter in network.parameters():
        parameter.data.mul_(4)
    ids = np.random.default_rng(0).integers(5, 18, (3, tokens))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    chosen = Architecture.parse(architecture)
    return export(
        Supernet(network, _SPACE).extract(chosen), chosen, deployment,
        model_shape(network, tokens), Processor(str(path), task, tokens), samples, [samples], directory / "artifact",
        target="cpu-test", metric="accuracy", predicted=None, fixed=fixed, doc_stride=SECTIONS[task].get("doc_stride"),
    )  # fmt: skip


def reference(artifact: Artifact, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What plain ONNX Runtime says of the artifact's fp32 file."""
    session = onnxruntime.InferenceSession(artifact.directory / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_code(code: str, *arguments: object) -> str:
    """What Python code prints in a process of its own, in which the server's modules can be imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout


@dataclass(frozen=True)
class Served:
    """A server that runs: its process, and the addresses it has told."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    metrics: str


@contextlib.contextmanager
def serving(directory: Path, *options: object) -> Iterator[Served]:
    """`instatune-deploy serve` on free ports; stopped by SIGTERM if it still runs, and held to exit code 0."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    command = [sys.executable, "-m", "instatune_deploy", "serve", str(directory), *ports, "--json", *map(str, options)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watch = threading.Timer(300, process.kill)
    watch.start()
    try:
        text = ""
        for line in process.stdout or ():
            text += line
            if line.startswith("}"):
                break
        watch.cancel()
        told = json.loads(text)
        yield Served(process, told["http"], told["grpc"], told["metrics"])
    finally:
        watch.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(120)
        finally:
            process.kill()
    assert code == 0

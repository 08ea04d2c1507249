"""`ArtifactModel`: MLServer's runtime for artifacts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import prometheus_client
from mlserver import MLModel, ModelSettings
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri

from instatune_deploy.benching import artifact_inputs, check_machine_runs
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import detect
from instatune_deploy.device.lowering.signature import Signature, read_signature
from instatune_deploy.device.lowering.variants import ONNX
from instatune_deploy.device.runtimes.base import Session, get_runtime
from instatune_deploy.elastic.pretrained import load_config
from instatune_deploy.elastic.probing import longest_text
from instatune_deploy.serving.batcher import Batcher
from instatune_deploy.serving.codecs import Encoded, TaskCodec, get_codec
from instatune_deploy.serving.tensors import DATATYPES, Input, check_ranges, metadata, read_inputs, read_numbers
from instatune_deploy.stages.export import Artifact, open_artifact
from instatune_deploy.values.recipe import Task

#: Words of a request that are encoded in the server's own thread; more would keep other requests waiting.
_FEW_BYTES = 4096


class ArtifactModel(MLModel):
    """An artifact, run by the runtime and with the threads that it was measured with.

    A request has the network's own inputs, or words that are encoded here: see `serving.codecs` for those of each task and
    what is answered beside the network's outputs; the model's metadata list both. Everything is checked before it is joined
    with other requests to one call.

    Of `model-settings.json` it reads `parameters.uri`, the artifact's directory; `max_batch_size`, rows of a call;
    `max_batch_time`, seconds that a request may wait for company; `parameters.extra`: `calls`, how many calls run at once.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._max_rows, self._max_wait_s = max(settings.max_batch_size, 1), settings.max_batch_time
        # With 0, MLServer leaves batching to us.
        super().__init__(settings.model_copy(update={"max_batch_size": 0}))

    async def load(self) -> bool:
        """Open the artifact and run its network once.

        Raises:
            ArtifactError: it is none, or a file was changed.
            TargetError: this machine cannot run its deployment.
        """
        directory = Path(await get_model_uri(self.settings))
        artifact = open_artifact(directory)
        deployment, task = artifact.manifest.deployment, cast(Task, artifact.manifest.task)
        check_machine_runs(deployment, detect())
        tokens, sample = artifact_inputs(artifact, None, 1, seed=0)
        config = load_config(str(directory))
        processor = Processor(str(directory), task, tokens or 1)
        labels = list((config.id2label or {}).values())
        self._codec: TaskCodec = get_codec(task, processor, labels)
        self._signature = _signature(artifact)
        self._limits = {} if tokens is None else _limits(config, sample)
        self._longest = None if tokens is None else longest_text(config)
        extra = (self.settings.parameters.extra if self.settings.parameters else None) or {}
        sessions = {"": _sessions(artifact, int(extra.get("calls", 1)), sample)}
        # One thread, and not beside the server's own: a tokenizer's truncation is a state of it.
        self._encoder, self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encoder"), 0
        padding = {} if tokens is None else _padding(processor, sample)
        rows = _rows_metric().labels(self.name)
        self._batcher = Batcher(
            sessions, self._signature, padding=padding, per_token=processor.head.traces is not None,
            max_rows=self._max_rows, max_wait_s=self._max_wait_s, observe=rows.observe,
        )  # fmt: skip
        self._describe(artifact)
        return True

    async def unload(self) -> bool:
        """Free the network."""
        if hasattr(self, "_batcher"):
            await self._batcher.close()
            self._encoder.shutdown()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request.

        Raises:
            InferenceError: it is not what the metadata say; says what is wrong.
            MLServerError: too many requests wait.
        """
        given = read_inputs(payload.inputs)
        wanted = self._wanted_outputs(payload)
        words = [name for name in self._codec.words if name in given]
        if words:
            encoded = await self._encode(given)
            outputs = await self._run(encoded.inputs)
            found = self._codec.answer(outputs, encoded)
        else:
            found = self._codec.answer_tensors(await self._run(self._tensors(given)))
        answered = {output.name: output for output in found}
        if missing := [name for name in wanted if name not in answered]:
            raise InferenceError(f"outputs {', '.join(missing)} are not given for such inputs")
        chosen = [answered[name] for name in wanted] if wanted else found
        return InferenceResponse(
            model_name=self.name, model_version=self.version, outputs=[output.message() for output in chosen]
        )

    async def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = await self._batcher("", inputs)
        return {tensor.name: array for tensor, array in zip(self._signature.outputs, outputs, strict=True)}

    async def _encode(self, given: Mapping[str, Input]) -> Encoded:
        """What the network reads for a request in words.

        Raises:
            InferenceError: an input is missing, too many or not what it should be.
        """
        wanted = [name for name in self._codec.words if name not in self._codec.optional]
        self._check_names(given, wanted, self._codec.words)
        size = sum(len(value) for one in given.values() for value in one.elements if isinstance(value, (str, bytes)))
        if size <= _FEW_BYTES and self._codec.processor.head.reads == "text" and not self._encoding:
            return self._codec.encode(given)
        self._encoding += 1
        try:
            job = asyncio.get_running_loop().run_in_executor(self._encoder, self._codec.encode, given)
            # A request that is cancelled does not end its job.
            return await asyncio.shield(job)
        finally:
            self._encoding -= 1

    def _tensors(self, given: Mapping[str, Input]) -> dict[str, np.ndarray]:
        """The network's inputs as they were sent.

        Raises:
            InferenceError: one is missing, too many or not what it should be.
        """
        names = [tensor.name for tensor in self._signature.inputs]
        self._check_names(given, names, names)
        arrays = {tensor.name: read_numbers(given[tensor.name], tensor) for tensor in self._signature.inputs}
        if not self._limits:
            return arrays
        check_ranges(arrays, self._limits)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        first = next(iter(shapes.values()))
        if any(shape != first for shape in shapes.values()):
            raise InferenceError(f"inputs must have one shape, found {shapes}")
        if self._longest is not None and first[1] > self._longest:
            raise InferenceError(f"texts have {first[1]} tokens, the network reads at most {self._longest}")
        if not arrays["attention_mask"].any(axis=1).all():
            raise InferenceError("input attention_mask: a row has no token that is not masked")
        return arrays

    def _check_names(self, given: Mapping[str, Input], needed: list[str], known: Any) -> None:
        if not set(needed) <= given.keys() <= set(known):
            both = f"either {', '.join(self._codec.words)} or {', '.join(t.name for t in self._signature.inputs)}"
            raise InferenceError(f"inputs are {', '.join(given)!r:.200}; wanted: {both}")

    def _wanted_outputs(self, payload: InferenceRequest) -> list[str]:
        """Names of the outputs that a request asks for; none: all of them."""
        wanted = [output.name for output in payload.outputs or []]
        known = [tensor.name for tensor in self.outputs or []]
        if unknown := [name for name in wanted if name not in known]:
            raise InferenceError(f"unknown output {unknown[0]!r:.100}; known: {', '.join(known)}")
        return wanted

    def _describe(self, artifact: Artifact) -> None:
        """Fill in the metadata."""
        own, codec = self._signature, self._codec
        self.inputs = [*codec.describe(), *(metadata(t.name, DATATYPES[t.dtype], t.dims) for t in own.inputs)]
        self.outputs = [
            *(metadata(t.name, "FP32", t.dims) for t in own.outputs),
            *(metadata(name, kind, shape) for name, (kind, shape) in codec.extra.items()),
        ]
        self._settings.platform = f"instatune-deploy_{artifact.manifest.deployment.name}"


def _signature(artifact: Artifact) -> Signature:
    """Inputs and outputs of the network; torch's file says none, and has those of the ONNX file."""
    file = artifact.model_file()
    return read_signature(file if file.suffix in (".onnx", ".xml") else artifact.directory / ONNX)


def _sessions(artifact: Artifact, calls: int, sample: dict[str, np.ndarray]) -> list[Session]:
    """The network, loaded for each of the calls that may run at once, and warm."""
    runtime = get_runtime(artifact.manifest.deployment.runtime)
    sessions: list[Session] = []
    for _ in range(calls):
        sessions.append(runtime.load(artifact.model_file(), artifact.manifest.deployment))
        sessions[-1].run(sample)
    return sessions


def _limits(config: Any, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Below what the whole numbers of a text's inputs must be."""
    limits = {
        "input_ids": config.vocab_size, "attention_mask": 2, "token_type_ids": getattr(config, "type_vocab_size", 0),
    }  # fmt: skip
    return {name: limits[name] for name in sample}


def _padding(processor: Processor, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What a text's inputs are padded with."""
    inner = processor.inner
    padding = {"input_ids": inner.pad_token_id, "attention_mask": 0, "token_type_ids": inner.pad_token_type_id}
    return {name: int(padding[name]) for name in sample}


def _rows_metric() -> prometheus_client.Histogram:
    """Rows of each call of a network; one of a process, though models are loaded again."""
    name = "instatune_batch_rows"
    known = prometheus_client.REGISTRY._names_to_collectors.get(name)
    return known or prometheus_client.Histogram(  # type: ignore[return-value]
        name, "Rows of a call of the network", ["model"], buckets=[1, 2, 4, 8, 16, 32, 64, 128]
    )

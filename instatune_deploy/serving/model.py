"""`ArtifactModel`: MLServer's runtime for artifacts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import prometheus_client
from mlserver import MLModel, ModelSettings
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, Parameters
from mlserver.utils import get_model_uri

from instatune_deploy.benching import artifact_inputs, check_machine_runs
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import detect
from instatune_deploy.device.lowering.signature import Signature, read_signature
from instatune_deploy.device.lowering.variants import ONNX
from instatune_deploy.device.runtimes.base import Session, get_runtime
from instatune_deploy.elastic.families import inputs_of
from instatune_deploy.elastic.pretrained import load_config
from instatune_deploy.elastic.probing import longest_text
from instatune_deploy.serving.batcher import Batcher
from instatune_deploy.serving.codecs import Encoded, TaskCodec, get_codec
from instatune_deploy.serving.members import Choice, Members, open_members
from instatune_deploy.serving.tensors import DATATYPES, Input, check_ranges, metadata, read_inputs, read_numbers
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.recipe import Task

#: Bytes of words that are encoded in the server's own thread; more would keep other requests waiting.
_FEW_BYTES = 4096


class ArtifactModel(MLModel):
    """An artifact, run by the runtime and with the threads that it was measured with.

    A request has the network's own inputs, or words that are encoded here: see `serving.codecs` for those of each task and
    what is answered beside the network's outputs; the model's metadata list both. Everything is checked before it is joined
    with other requests to one call.

    A fleet is served as one model; `serving.members` says which of its networks answers a request, and the answer's parameter
    `member` which one has.

    Of `model-settings.json` it reads `parameters.uri`, the directory of an artifact or a fleet; `max_batch_size`, rows of a
    call; `max_batch_time`, seconds that a request may wait for company; of `parameters.extra`, `calls`, how many calls run at
    once, and `hold_ms`, see `serving.members.Choice`.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._max_rows, self._max_wait_s = max(settings.max_batch_size, 1), settings.max_batch_time
        # With 0, MLServer leaves batching to us.
        super().__init__(settings.model_copy(update={"max_batch_size": 0}))

    async def load(self) -> bool:
        """Open the artifact or fleet and run each network once.

        Raises:
            ArtifactError: it is neither, or a file was changed.
            TargetError: this machine cannot run a deployment.
        """
        members = open_members(Path(await get_model_uri(self.settings)))
        machine = detect()
        for artifact in members.artifacts.values():
            check_machine_runs(artifact.manifest.deployment, machine)
        first, config = members.first, load_config(str(members.first.directory))
        # No longer than any of their fixed sizes; each fills up to its own.
        cut = None if inputs_of(config) == "image" else first.sequence_length
        tokens, sample = artifact_inputs(first, cut, 1, seed=0)
        self._codec = _codec(first, tokens, config)
        processor = self._codec.processor
        # A tokenizer's truncation is a state of it: the server's own thread and that of larger requests have one each.
        self._codec_of_few = None if processor.images is not None else _codec(first, tokens, config)
        self._signature = _signature(first)
        self._limits = {} if tokens is None else _limits(config, sample)
        self._longest = None if tokens is None else _longest(members, config)
        extra = (self.settings.parameters.extra if self.settings.parameters else None) or {}
        calls = int(extra.get("calls", 1))
        sessions = {name: _sessions(artifact, calls, sample) for name, artifact in members.artifacts.items()}
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._batcher = Batcher(
            sessions, padding={} if tokens is None else _padding(processor, sample),
            per_token=processor.head.traces is not None, max_wait_s=self._max_wait_s, observe=_calls_metric(self.name),
            max_rows={
                name: 1 if artifact.manifest.deployment.runs_rows_alone(image=processor.images is not None) else self._max_rows
                for name, artifact in members.artifacts.items()
            },
        )  # fmt: skip
        self._choice = Choice(members, extra.get("hold_ms"), busy=lambda: self._batcher.busy_s)
        self._describe(members)
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
        started = time.monotonic()
        given = read_inputs(payload.inputs)
        self._batcher.check(next(iter(given.values())).shape[0])  # before the work of encoding them
        wanted = self._wanted_outputs(payload)
        member, by_load = self._choice.pick(payload.parameters)
        if any(name in given for name in self._codec.words):
            encoded = await self._encode(given)
            found = self._codec.answer(await self._run(member, encoded.inputs), encoded)
        else:
            found = self._codec.answer_tensors(await self._run(member, self._tensors(given)))
        answered = {output.name: output for output in found}
        if missing := [name for name in wanted if name not in answered]:
            raise InferenceError(f"outputs {', '.join(missing)} are not given for such inputs")
        chosen = [answered[name] for name in wanted] if wanted else found
        response = InferenceResponse(
            model_name=self.name, model_version=self.version, outputs=[output.message() for output in chosen]
        )
        if member:
            response.parameters = Parameters(member=member)
        self._choice.observe(started, by_load)
        return response

    async def _run(self, member: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = await self._batcher(member, inputs)
        return {tensor.name: array for tensor, array in zip(self._signature.outputs, outputs, strict=True)}

    async def _encode(self, given: Mapping[str, Input]) -> Encoded:
        """What the network reads for a request in words.

        Raises:
            InferenceError: an input is missing, too many or not what it should be.
        """
        codec = self._codec
        tensors = {word: own for word, own in codec.tensors.items() if own in given and word not in given}
        names = {word: tensors.get(word, word) for word in codec.words}
        self._check_names(given, [names[word] for word in codec.words if word not in codec.optional], names.values())
        arrays = {t.name: read_numbers(given[t.name], t) for t in self._signature.inputs if t.name in tensors.values()}
        encoded = await self._encode_words({name: one for name, one in given.items() if name not in arrays})
        return replace(encoded, inputs=encoded.inputs | arrays)

    async def _encode_words(self, given: Mapping[str, Input]) -> Encoded:
        """What the network reads for words alone, encoded where it keeps no other request waiting."""
        size = sum(len(value) for one in given.values() for value in one.elements if isinstance(value, (str, bytes)))
        if size <= _FEW_BYTES and self._codec_of_few is not None:
            return self._codec_of_few.encode(given)
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._codec.encode, given)

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
        shapes = {name: list(array.shape) for name, array in arrays.items() if name in self._limits}
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

    def _describe(self, members: Members) -> None:
        """Fill in the metadata."""
        own, codec = self._signature, self._codec
        self.inputs = [*codec.describe(), *(metadata(t.name, DATATYPES[t.dtype], t.dims) for t in own.inputs)]
        self.outputs = [
            *(metadata(t.name, "FP32", t.dims) for t in own.outputs),
            *(metadata(name, kind, shape) for name, (kind, shape) in codec.extra.items()),
        ]
        names = sorted({artifact.manifest.deployment.name for artifact in members.artifacts.values()})
        self._settings.platform = "_".join(["instatune-deploy", *names])


def _codec(artifact: Artifact, tokens: int | None, config: Any) -> TaskCodec:
    """The codec of an artifact's task, whose texts are cut to `tokens`."""
    task = cast(Task, artifact.manifest.task)
    labels = list((config.id2label or {}).values())
    return get_codec(task, Processor(str(artifact.directory), task, tokens or 1), labels, artifact.manifest.doc_stride)


def _signature(artifact: Artifact) -> Signature:
    """Inputs and outputs of the network; torch's file says none, and has those of the ONNX file.

    Sessions take any number of rows and any shorter text, whatever sizes are fixed in the file.
    """
    file = artifact.model_file()
    found = read_signature(file if file.suffix in (".onnx", ".xml") else artifact.directory / ONNX)
    inputs = [
        replace(t, dims=(-1, -1) if t.dtype.startswith("int") and len(t.dims) == 2 else (-1, *t.dims[1:]))
        for t in found.inputs
    ]
    return Signature(tuple(inputs), tuple(replace(t, dims=(-1, *t.dims[1:])) for t in found.outputs))


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
    # Of a network that does not look at them: as tokenizers give them.
    types = getattr(config, "type_vocab_size", 0) or 2
    limits = {"input_ids": config.vocab_size, "attention_mask": 2, "token_type_ids": types}
    return {name: limit for name, limit in limits.items() if name in sample}


def _padding(processor: Processor, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What a text's inputs are padded with."""
    inner = processor.inner
    padding = {"input_ids": inner.pad_token_id, "attention_mask": 0, "token_type_ids": inner.pad_token_type_id}
    return {name: int(value) for name, value in padding.items() if name in sample}


def _longest(members: Members, config: Any) -> int | None:
    """How many tokens a text may have in every member; None: any number."""
    fixed = [artifact.manifest.fixed for artifact in members.artifacts.values()]
    found = [longest_text(config), *(sizes.tokens for sizes in fixed if sizes is not None)]
    return min((tokens for tokens in found if tokens is not None), default=None)


def _calls_metric(model: str) -> Callable[[str, int], None]:
    """Counts calls of networks and their rows. The metric is one of a process, though models are loaded again."""
    name = "instatune_batch_rows"
    known = prometheus_client.REGISTRY._names_to_collectors.get(name)
    rows = cast(Any, known) or prometheus_client.Histogram(
        name, "Rows of a call of the network", ["model", "member"], buckets=[1, 2, 4, 8, 16, 32, 64, 128]
    )
    return lambda member, count: rows.labels(model, member).observe(count)

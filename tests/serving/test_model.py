"""The runtime on a plain MLServer, started on repositories as `package` writes them: every task's words and tensors, and what
is wrong with them.

The server has a process of its own, here for one more reason: MLServer's and Triton's messages have the same names, and one
process cannot know both.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from instatune_deploy.data.heads.questions import best_span
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_config
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.repositories import write_repository
from instatune_deploy.stages.export import Artifact, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.recipe import Task
from tests.serving.processes import export_text, reference
from tests.stages.test_export import export_tiny

pytestmark = pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """One of each task, and that of texts' classes for OpenVINO."""
    found = {}
    for name in get_args(Task):
        directory = tmp_path_factory.mktemp("artifact")
        kind = {"image-classification": "image", "visual-question-answering": "image-text"}.get(name)
        found[name] = export_tiny(kind, Deployment("onnxruntime"), directory) if kind else export_text(name, directory)
    other = shutil.copytree(found["text-classification"].directory, tmp_path_factory.mktemp("artifact") / "openvino")
    replace(found["text-classification"].manifest, deployment=Deployment("openvino")).write(other)
    found["openvino"] = open_artifact(other)
    return found


@pytest.fixture(scope="module")
def address(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A repository of all of them, served by `mlserver start`."""
    root = tmp_path_factory.mktemp("repositories") / "all"
    for name, artifact in artifacts.items():
        made = write_repository(artifact.directory, "mlserver", root.parent / name, name=name)
        assert {path.name for path in made.iterdir()} == {name, "settings.json"}
        root.mkdir(exist_ok=True)
        for path in made.iterdir():
            path.rename(root / path.name)
    settings = json.loads((root / "settings.json").read_text())
    ports = {}
    for kind in ("http_port", "grpc_port", "metrics_port"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[kind] = free.getsockname()[1]
    (root / "settings.json").write_text(json.dumps({**settings, "host": "127.0.0.1", **ports}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "mlserver", "start", root]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{ports['http_port']}/v2"
    try:
        _wait_until_ready(process, f"{address}/health/ready", [f"{address}/models/{name}/ready" for name in artifacts])
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], *addresses: Any) -> None:
    server, models = addresses
    for _ in range(1200):
        assert process.poll() is None, "the server has ended"
        try:
            if all(httpx.get(one).status_code == 200 for one in (server, *models)):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server is not ready after two minutes")


class InferenceError(Exception):
    """What the server says of a bad request."""


@dataclass(frozen=True)
class Asked:
    """A model on the server."""

    artifact: Artifact
    address: str

    def __call__(self, *inputs: dict[str, Any], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
        wanted = {} if outputs is None else {"outputs": [{"name": name} for name in outputs]}
        response = httpx.post(f"{self.address}/infer", json={"inputs": inputs, **wanted}, timeout=60)
        if response.status_code == 400:
            raise InferenceError(response.json()["error"])
        assert response.status_code == 200, response.text
        found = {}
        for one in response.json()["outputs"]:
            found[one["name"]] = np.reshape(
                np.asarray(one["data"], object if one["datatype"] == "BYTES" else None), one["shape"]
            )
        return found

    @property
    def processor(self) -> Processor:
        return Processor(str(self.artifact.directory), self.artifact.manifest.task, 16)


@pytest.fixture(params=get_args(Task))
def asked(request: pytest.FixtureRequest, artifacts: dict[str, Artifact], address: str) -> Asked:
    return Asked(artifacts[request.param], f"{address}/models/{request.param}")


def of_task(name: str) -> Callable[..., Any]:
    return pytest.mark.parametrize("asked", [name], indirect=True)


def words(name: str, *elements: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(elements)], "data": list(elements)}


def tensors(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    kinds = {"i": "INT64", "f": "FP32"}
    return [
        {"name": name, "datatype": kinds[array.dtype.kind], "shape": list(array.shape), "data": array.tolist()}
        for name, array in arrays.items()
    ]


def tokens(asked: Asked, *texts: Any, **options: Any) -> dict[str, np.ndarray]:
    """What the artifact's own tokenizer says."""
    inner = asked.processor.inner
    return dict(inner(*texts, padding=True, truncation=True, max_length=16, return_tensors="np", **options))


def test_tensors_are_answered_as_the_file_does(asked: Asked) -> None:
    inputs = synthetic_inputs(load_config(str(asked.artifact.directory)), 9, 3, seed=1)
    if "attention_mask" in inputs:
        inputs["attention_mask"][1, 4:] = 0
    found = asked(*tensors(inputs))
    for name, expected in reference(asked.artifact, inputs).items():
        assert np.abs(found[name].astype(np.float32) - expected).max() < 1e-5
    told = {tensor["name"] for tensor in httpx.get(asked.address).json()["outputs"]}
    assert told >= found.keys()


@of_task("text-classification")
def test_texts_and_pairs_are_classes_with_their_probabilities(asked: Asked) -> None:
    texts, others = ("good film", "very bad plot and cast"), ("sad", "happy happy")
    for given, expected in (
        ((words("text", *texts),), tokens(asked, list(texts))),
        ((words("text", *texts), words("text_pair", *others)), tokens(asked, list(texts), list(others))),
    ):
        found = asked(*given)
        logits = reference(asked.artifact, expected)["logits"]
        assert np.abs(found["logits"] - logits).max() < 1e-5
        assert list(found["labels"]) == [f"LABEL_{best}" for best in logits.argmax(axis=1)]
        assert np.allclose(found["scores"], softmax(logits, axis=1).max(axis=1), atol=1e-5)
    assert asked(words("text", *texts), outputs=["labels"]).keys() == {"labels"}


@of_task("text-regression")
def test_numbers_are_scores(asked: Asked) -> None:
    found = asked(words("text", "good", "bad film"))
    assert found.keys() == {"logits", "scores"}
    expected = reference(asked.artifact, tokens(asked, ["good", "bad film"]))["logits"]
    assert np.allclose(found["scores"], expected[:, 0], atol=1e-5)


@of_task("token-classification")
def test_each_word_gets_the_tag_of_its_first_token(asked: Asked) -> None:
    texts = ["goods very  films", "bad"]
    found = asked(words("text", *texts))
    encoded = tokens(asked, [text.split() for text in texts], is_split_into_words=True)
    assert encoded["input_ids"].shape[1] == 7  # two of the words have two tokens
    logits = reference(asked.artifact, encoded)["logits"]
    assert np.abs(found["logits"] - logits).max() < 1e-5
    best = logits.argmax(axis=-1)
    expected = [[best[0, 1], best[0, 3], best[0, 4]], [best[1, 1]]]
    named = [[f"LABEL_{tag}" for tag in row] for row in expected]
    assert found["labels"].tolist() == [named[0], [*named[1], "", ""]]
    assert found["scores"][1, 1:].tolist() == [0, 0]
    assert np.isclose(found["scores"][0, 1], softmax(logits[0, 3]).max(), atol=1e-5)
    assert asked(*tensors(encoded))["labels"].shape == encoded["input_ids"].shape
    long = asked(words("text", "film " * 40))
    assert long["labels"].tolist()[0][14:] == [""] * 26  # beyond 16 tokens, two of which are special


@of_task("question-answering")
def test_answers_stand_in_their_contexts(asked: Asked) -> None:
    short, long = "the cast very good films", " ".join(["plot", "film", "cast", "happy"] * 10)
    found = asked(words("question", "very good", "good"), words("context", short, long))
    for row, context in enumerate((short, long)):
        start, end = found["starts"][row], found["ends"][row]
        assert found["answers"][row] == context[start:end] != ""
    encoded = tokens(asked, ["very good"], [short])
    own = reference(asked.artifact, encoded)
    context = slice(4, 10)  # after [CLS] very good [SEP]; "films" has two tokens
    score, begin, _ = best_span(own["start_logits"][0, context], own["end_logits"][0, context])
    assert np.isclose(found["scores"][0], score, atol=1e-4)
    assert found["starts"][0] == [0, 4, 9, 14, 19, 23][begin]
    with pytest.raises(InferenceError, match="leaves 0 for its context"):
        asked(words("question", "good " * 30), words("context", "film"))
    with pytest.raises(InferenceError, match="start_logits are not given"):
        asked(words("question", "good"), words("context", "film"), outputs=["start_logits"])


@of_task("image-classification")
def test_images_are_decoded(asked: Asked) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    found = asked(words("image", base64.b64encode(stream.getvalue()).decode()))
    inputs = asked.processor.encode_images([Image.fromarray(pixels)])
    assert np.abs(found["logits"] - reference(asked.artifact, inputs)["logits"]).max() < 1e-5
    for data, message in (
        ("bm8gaW1hZ2U=", "cannot be decoded"), ("!", "not base64"),
        (base64.b64encode(stream.getvalue()[:60]).decode(), "cannot be decoded"),
        (base64.b64encode(_large_image()).decode(), "at most 50000000 are decoded"),
    ):  # fmt: skip
        with pytest.raises(InferenceError, match=message):
            asked(words("image", data))
    pixel = {"name": "pixel_values", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [1e39] * 192}
    with pytest.raises(InferenceError, match="not finite"):
        asked(pixel)
    with pytest.raises(InferenceError, match=r"shape \[1, 3, 8, 9\], wanted \[-1, 3, 8, 8\]"):
        asked({**pixel, "shape": [1, 3, 8, 9]})


@of_task("visual-question-answering")
def test_questions_about_images_are_answered(asked: Asked) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)) for _ in range(2)]
    files = [base64.b64encode(_png(picture)).decode() for picture in pictures]
    questions = ("what colour is the cross", "how many shapes are red")
    pixels = asked.processor.encode_images(pictures)
    expected = reference(asked.artifact, {**tokens(asked, list(questions)), **pixels})["logits"]
    found = asked(words("image", *files), words("text", *questions))
    assert np.abs(found["logits"] - expected).max() < 1e-5
    assert list(found["labels"]) == [f"LABEL_{best}" for best in expected.argmax(axis=1)]
    # The other picture gets another answer to the same question, and the other question to the same picture.
    for other in (
        (words("image", *files[::-1]), words("text", *questions)), (words("image", *files), words("text", *questions[::-1])),
    ):  # fmt: skip
        assert np.abs(asked(*other)["logits"] - found["logits"]).max() > 1e-3
    same = asked(*tensors(pixels), words("text", *questions))
    assert np.abs(same["logits"] - expected).max() < 1e-5
    for given, message in (
        ([words("image", files[0])], "wanted: either image, text or input_ids, attention_mask, pixel_values"),
        ([words("text", questions[0])], "wanted: either image, text or"),
        (tensors(pixels), "wanted: either image, text or"),
        ([*tensors(pixels), words("image", *files), words("text", *questions)], "wanted: either image, text or"),
        ([words("image", *files), words("text", questions[0])], "one number of rows"),
        ([words("image", "bm8gaW1hZ2U="), words("text", questions[0])], "cannot be decoded"),
        ([{**tensors(pixels)[0], "shape": [2, 3, 8, 9]}, words("text", *questions)], r"wanted \[-1, 3, 8, 8\]"),
    ):  # fmt: skip
        with pytest.raises(InferenceError, match=message):
            asked(*given)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _large_image() -> bytes:
    """A file of some hundred bytes that says it has 8,000x8,000 pixels."""
    stream = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(stream, "PNG")
    return stream.getvalue()


def ids(*rows: list[Any], kind: str = "INT64", **changed: Any) -> list[dict[str, Any]]:
    """Three inputs of a text as tensors, one of which may be changed."""
    shape = [len(rows), len(rows[0])]
    ones = [[1] * len(row) for row in rows]
    given = {"input_ids": rows, "attention_mask": ones, "token_type_ids": [[0] * len(row) for row in rows]}
    return [
        {"name": name, "datatype": kind, "shape": shape, "data": changed.get(name, list(data))}
        for name, data in given.items()
    ]


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no inputs": ([], "found no inputs"),
    "unknown input": ([words("texts", "a")], "wanted: either text, text_pair or input_ids"),
    "a pair without its text": ([words("text_pair", "a")], "wanted: either"),
    "words and tensors": ([words("text", "a"), *ids([5])], "wanted: either"),
    "an input is missing": (ids([5, 6])[:2], "wanted: either"),
    "an input twice": ([words("text", "a"), words("text", "b")], "given twice"),
    "rows differ": ([words("text", "a", "b"), words("text_pair", "a")], "one number of rows"),
    "no rows": ([{**words("text"), "shape": [0]}], "has no elements"),
    "no shape": ([{**words("text", "a"), "shape": []}], "has no elements"),
    "negative shape": ([{**words("text", "a"), "shape": [-1]}], "has no elements"),
    "too few texts": ([{**words("text", "a"), "shape": [2]}], "no list of 2 elements"),
    "texts of two dimensions": ([{**words("text", "a", "b"), "shape": [1, 2]}], "one element a row"),
    "texts that are numbers": ([{**words("text", "a"), "data": [3]}], "neither text nor bytes"),
    "texts that are none": ([{**words("text", "a"), "data": None}], "no list of 1 elements"),
    "texts of another type": ([{**words("text", "a"), "datatype": "INT64"}], "wanted BYTES"),
    "not UTF-8": (
        [{**words("text", base64.b64encode(b"\xff\xfe").decode()), "parameters": {"content_type": "base64"}}],
        "not UTF-8",
    ),
    "wrong type": (ids([5, 6], kind="INT32"), "datatype 'INT32', the network reads INT64"),
    "id too large": (ids([5, 999]), "outside 0..17"),
    "id negative": (ids([5, -1]), "outside 0..17"),
    "id of 65 bits": (ids([5, 2**65]), "no array of numbers"),
    "id of 64 bits": (ids([2**63 + 1]), "do not fit INT64"),
    "id not whole": (ids([5, 6.5]), "no array of numbers"),
    "id no number": (ids([5, "6"]), "no array of numbers"),
    "mask of another number": (ids([5, 6], attention_mask=[[1, 2]]), "attention_mask: holds numbers outside 0..1"),
    "mask of nothing": (ids([5, 6], attention_mask=[[0, 0]]), "no token that is not masked"),
    "ragged": (ids([5, 6], input_ids=[[5], [6, 7]]), "no array of numbers"),
    "nested deep": (ids([5, 6], input_ids=[[[[[5, 6]]]]]), r"data of shape \[1, 1, 1, 1, 2\]"),
    "too few ids": (ids([5, 6], input_ids=[[5]]), r"not of the shape \[1, 2\]"),
    "one dimension": ([{**one, "shape": [2]} for one in ids([5, 6])], r"shape \[2\], wanted \[-1, -1\]"),
    "too long": (ids([5] * 17), "17 tokens, the network reads at most 16"),
    "lengths differ": ([*ids([5, 6])[:2], ids([5])[2]], "must have one shape"),
    "shape beyond memory": ([{**one, "shape": [1, 10**18]} for one in ids([5, 6])], "is not of the shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@of_task("text-classification")
def test_what_is_wrong_is_said(asked: Asked, name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(InferenceError, match=message):
        asked(*given)


@of_task("text-classification")
def test_an_unknown_output_is_said(asked: Asked) -> None:
    with pytest.raises(InferenceError, match="unknown output 'logit'; known: logits, labels, scores"):
        asked(words("text", "a"), outputs=["logit"])


@of_task("openvino")
def test_openvino_serves_its_file(asked: Asked) -> None:
    assert httpx.get(asked.address).json()["platform"] == "instatune-deploy_ov-fp32-1t"
    expected = reference(asked.artifact, tokens(asked, ["good film"]))["logits"]
    assert np.abs(asked(words("text", "good film"))["logits"] - expected).max() < 1e-5

"""`instatune-deploy serve`: a real server, asked by Triton's clients and by hand, in good and in bad ways."""

from __future__ import annotations

import json
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from instatune_deploy.data.processor import Processor
from instatune_deploy.stages.export import Artifact
from tests.serving.processes import Served, export_text, reference, serving

# MLServer's and Triton's messages have the same names, so that no process can know both: servers are asked from outside.
triton_http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException
pytestmark = pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve")

TEXTS = ["good film", "very bad plots and awful cast", "happy"]
LIMIT = 100_000


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_text("text-classification", tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(artifact: Artifact) -> Iterator[Served]:
    with serving(
        artifact.directory, "--max-request-bytes", LIMIT, "--calls", 2, "--max-batch-time", 4, "--name", "tiny"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=60) as client:
        yield client


def tokens(artifact: Artifact, texts: list[str]) -> dict[str, np.ndarray]:
    inner = Processor(str(artifact.directory), "text-classification", 16).inner
    return dict(inner(texts, padding=True, truncation=True, max_length=16, return_tensors="np"))


def text_input(client: Any, texts: list[str], **options: Any) -> Any:
    found = client.InferInput("text", [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object), **options)
    return found


def token_inputs(client: Any, arrays: dict[str, np.ndarray], **options: Any) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(client.InferInput(name, list(array.shape), "INT64"))
        inputs[-1].set_data_from_numpy(array, **options)
    return inputs


def infer(http: httpx.Client, body: Any, name: str = "tiny", **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(f"/v2/models/{name}/infer", content=content, **options)


def text_body(*texts: str) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]}


@pytest.mark.parametrize("way", ["grpc", "json", "binary"])
def test_tritons_clients_get_the_files_own_answers(artifact: Artifact, served: Served, way: str) -> None:
    arrays = tokens(artifact, TEXTS)
    expected = reference(artifact, arrays)["logits"]
    module, address = (triton_grpc, served.grpc) if way == "grpc" else (triton_http, served.http)
    options = {} if way == "grpc" else {"binary_data": way == "binary"}
    client = module.InferenceServerClient(address)
    for inputs in ([text_input(module, TEXTS, **options)], token_inputs(module, arrays, **options)):
        found = client.infer("tiny", inputs)
        assert np.abs(found.as_numpy("logits") - expected).max() < 1e-5
        labels = [label if isinstance(label, str) else label.decode() for label in found.as_numpy("labels")]
        assert labels == [f"LABEL_{best}" for best in expected.argmax(axis=1)]
    wanted = [module.InferRequestedOutput("scores")]
    only = client.infer("tiny", inputs, outputs=wanted).get_response()
    outputs = only["outputs"] if way != "grpc" else [{"name": output.name} for output in only.outputs]
    assert [output["name"] for output in outputs] == ["scores"]
    client.close()


def test_health_and_metadata(served: Served) -> None:
    with triton_http.InferenceServerClient(served.http) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        found = client.get_model_metadata("tiny")
    assert found["platform"] == "instatune-deploy_ort-fp32-1t"
    tensors = {one["name"]: (one["datatype"], one["shape"]) for one in found["inputs"] + found["outputs"]}
    assert tensors == {
        "text": ("BYTES", [-1]), "text_pair": ("BYTES", [-1]), "input_ids": ("INT64", [-1, -1]),
        "attention_mask": ("INT64", [-1, -1]), "token_type_ids": ("INT64", [-1, -1]), "logits": ("FP32", [-1, 3]),
        "labels": ("BYTES", [-1]), "scores": ("FP32", [-1]),
    }  # fmt: skip
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        assert client.is_model_ready("tiny")
        same = client.get_model_metadata("tiny", as_json=True)
        assert [one["name"] for one in same["inputs"]] == [one["name"] for one in found["inputs"]]
        for method in (client.get_model_repository_index, lambda: client.unload_model("tiny")):
            with pytest.raises(InferenceServerException, match="not loaded or unloaded"):
                method()


def test_many_clients_at_once_get_their_own_answers_in_few_calls(artifact: Artifact, served: Served) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["good", "bad", "film", "very", "casts"], k=rng.randint(1, 14))) for _ in range(300)]
    expected = reference(artifact, tokens(artifact, texts))["logits"]
    before = calls(served)

    def ask(part: int) -> float:
        """All of a client's texts wait at once, however slowly they come."""
        mine = list(zip(texts, expected, strict=True))[part::20]
        answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
        with triton_grpc.InferenceServerClient(served.grpc) as client:
            for number, (text, _) in enumerate(mine):
                keep = partial(lambda number, result, error: answers.put((number, result, error)), number)
                client.async_infer("tiny", [text_input(triton_grpc, [text])], keep)
            worst = 0.0
            for _ in mine:
                number, result, error = answers.get(timeout=60)
                assert error is None
                worst = max(worst, float(np.abs(result.as_numpy("logits")[0] - mine[number][1]).max()))
        return worst

    with ThreadPoolExecutor(20) as pool:
        assert max(pool.map(ask, range(20))) < 1e-5
    after = calls(served)
    assert after["sum"] - before["sum"] == 300
    assert after["count"] - before["count"] < 150


def calls(served: Served) -> dict[str, float]:
    """Calls of the network so far, and their rows."""
    lines = httpx.get(f"http://{served.metrics}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("instatune_batch_rows_"))
    return {
        what: float(values.get(f'instatune_batch_rows_{what}{{member="",model="tiny"}}', 0))
        for what in ("count", "sum")
    }


def test_more_rows_than_a_call_takes_are_answered(artifact: Artifact, http: httpx.Client) -> None:
    texts = [["good", "bad film", "sad"][number % 3] for number in range(100)]
    found = infer(http, text_body(*texts)).json()["outputs"][0]
    expected = reference(artifact, tokens(artifact, texts))["logits"]
    assert np.abs(np.reshape(found["data"], found["shape"]) - expected).max() < 1e-5
    refused = infer(http, text_body(*["good"] * 1100))
    assert (refused.status_code, "at most 1024 are taken: send fewer" in refused.json()["error"]) == (400, True)


BAD = {
    "not JSON": (b"{", {}, 400, "not JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', {}, 400, "not JSON"),
    "no object": (b"[1]", {}, 400, "body: Input should be"),
    "empty": (b"", {}, 400, "not JSON"),
    "infinite": (b'{"inputs": [], "id": 1e999}', {}, 400, "number is infinity"),
    "deep": (b"[" * 5000 + b"]" * 5000, {}, 400, "not JSON"),
    "a shape of text": ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": ["a"], "data": []}]}, {}, 400,
                        "inputs.0.shape.0: Input should be a valid integer"),
    "no data": ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}]}, {}, 400, "data: Field required"),
    "unknown type": ({"inputs": [{"name": "text", "datatype": "TEXT", "shape": [1], "data": ["a"]}]}, {}, 400,
                     "datatype: Input should be 'BOOL'"),
    "wrong name": ({"inputs": [{"name": "txt", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}, {}, 400, "wanted: either"),
    "unknown model": (text_body("a"), {"name": "tony"}, 404, "Model tony not found"),
    "too large": (text_body("a" * LIMIT), {}, 413, f"more than {LIMIT} bytes"),
    "compressed": (text_body("a"), {"headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding"),
    "JSON length": (text_body("a"), {"headers": {"Inference-Header-Content-Length": "-3"}}, 400, "the body has"),
    "bytes of nobody": (json.dumps(text_body("a")).encode() + b"abc",
                        {"headers": {"Inference-Header-Content-Length": str(len(json.dumps(text_body("a"))))}}, 400,
                        "3 bytes after the inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_and_the_next_is_answered(http: httpx.Client, name: str) -> None:
    body, options, status, reason = BAD[name]
    refused = infer(http, body, **options)
    assert refused.status_code == status
    assert reason in refused.json()["error"]
    assert infer(http, text_body("good")).status_code == 200


def test_other_paths_and_methods_are_refused(http: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v2/models/tiny/infer", 405), ("POST", "/v2/repository/models/tiny/unload", 404),
        ("POST", "/v2/repository/index", 404), ("POST", "/v2/models/tiny/infer_stream", 404),
        ("POST", "/v2/models/tiny/versions/3/infer", 404), ("GET", "/v2/models/tony", 404), ("BREW", "/v2", 405),
    ):  # fmt: skip
        found = http.request(method, path, content=b"{}")
        assert found.status_code == status, path
        assert found.json()["error"]


def test_a_body_that_is_sent_in_pieces_has_a_limit_too(http: httpx.Client) -> None:
    found = http.post("/v2/models/tiny/infer", content=(b" " * 10_000 for _ in range(20)))
    assert found.status_code == 413


def test_grpc_refuses_with_its_codes(artifact: Artifact, served: Served) -> None:
    arrays = tokens(artifact, ["good film"])
    with triton_grpc.InferenceServerClient(served.grpc) as client:

        def refused(inputs: list[Any], code: str, reason: str, model: str = "tiny") -> None:
            with pytest.raises(InferenceServerException, match=reason) as caught:
                client.infer(model, inputs)
            assert caught.value.status() == f"StatusCode.{code}"
            assert client.infer("tiny", token_inputs(triton_grpc, arrays)).as_numpy("logits").shape == (1, 3)

        good = text_input(triton_grpc, ["good"])
        refused([good], "NOT_FOUND", "Model tony not found", model="tony")
        refused([text_input(triton_grpc, ["a" * LIMIT])], "RESOURCE_EXHAUSTED", "larger than max")
        refused([text_input(triton_grpc, ["good"] * 1100)], "INVALID_ARGUMENT", "send fewer at a time")
        refused(
            token_inputs(triton_grpc, {**arrays, "input_ids": arrays["input_ids"] + 99}), "INVALID_ARGUMENT", "outside"
        )
        refused(token_inputs(triton_grpc, arrays)[:1], "INVALID_ARGUMENT", "wanted: either")
        broken = text_input(triton_grpc, ["good"])
        broken._raw_content = broken._raw_content[:-2]
        refused([broken], "INVALID_ARGUMENT", "end within an element")
        bad_text = triton_grpc.InferInput("text", [1], "BYTES")
        bad_text.set_data_from_numpy(np.array([b"\xff\xfe"], dtype=object))
        refused([bad_text], "INVALID_ARGUMENT", "not UTF-8")
        short = token_inputs(triton_grpc, arrays)
        short[0]._raw_content = short[0]._raw_content[:-3]
        refused(short, "INVALID_ARGUMENT", "are not those of shape")
        strange = triton_grpc.InferInput("text", [1], "BYTES")
        strange.set_data_from_numpy(np.array([b"good"], dtype=object))
        strange._input.datatype = "WORDS"
        refused([strange], "INVALID_ARGUMENT", "unknown datatype 'WORDS'")


def test_a_client_that_goes_takes_no_answer_from_others(served: Served) -> None:
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        heard = threading.Event()
        gone = [
            client.async_infer("tiny", [text_input(triton_grpc, ["good"] * 900)], lambda result, error: heard.set())
            for _ in range(4)
        ]
        for call in gone:
            call.cancel()
        for _ in range(5):
            assert client.infer("tiny", [text_input(triton_grpc, ["bad"])]).as_numpy("logits").shape == (1, 3)
        assert heard.wait(30)


def _any_json(rng: random.Random, depth: int = 0) -> Any:
    """Something that JSON can say."""
    kinds = ["none", "bool", "int", "large", "float", "text", "list", "object"]
    kind = rng.choice(kinds[: 6 if depth > 3 else 8])
    if kind == "list":
        return [_any_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == "object":
        keys = ["name", "shape", "datatype", "data", "parameters", "inputs", "content_type", "headers", "x"]
        return {rng.choice(keys): _any_json(rng, depth + 1) for _ in range(rng.randrange(4))}
    return {
        "none": None, "bool": True, "int": rng.randrange(-3, 20), "large": 10 ** rng.randrange(30), "float": 10.0 ** rng.randrange(300),
        "text": rng.choice(["", "good", "\x00", "ü", "\ud800", "BYTES", "INT64", "FP32", "base64"]),
    }[kind]  # fmt: skip


def _spoilt(rng: random.Random) -> Any:
    """A request that was right before a part or two of it were replaced, left out or repeated."""
    names = ["text"] if rng.random() < 0.5 else ["input_ids", "attention_mask", "token_type_ids"]
    kind, data = ("BYTES", ["good", "bad"]) if names == ["text"] else ("INT64", [[1, 1], [1, 1]])
    shape = [2] if names == ["text"] else [2, 2]
    body: Any = {
        "id": "a", "parameters": {}, "outputs": [{"name": "logits"}],
        "inputs": [{"name": name, "datatype": kind, "shape": list(shape), "data": json.loads(json.dumps(data))} for name in names],
    }  # fmt: skip
    for _ in range(rng.randint(1, 2)):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], (dict, list)) and rng.random() < 0.8:
                place = place[key]
                continue
            how = rng.random()
            if how < 0.15:
                del place[key]
            elif how < 0.3 and isinstance(place, list):
                place.append(place[key])
            else:
                place[key] = _any_json(rng)
            break
    return body


def test_nothing_that_is_sent_brings_an_error_of_the_server(http: httpx.Client) -> None:
    rng = random.Random(0)
    seen = set()
    for number in range(600):
        body = json.dumps(_spoilt(rng) if number % 4 else _any_json(rng)).encode()
        if number % 10 == 0:
            place = rng.randrange(len(body))
            body = body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]
        found = infer(http, body)
        assert found.status_code in (200, 400), (body, found.text)
        assert found.status_code == 200 or found.json()["error"]
        seen.add(found.status_code)
    assert seen == {200, 400}


def test_prometheus_reads_the_metrics(served: Served, http: httpx.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    infer(http, text_body("good"))
    infer(http, b"{")
    text = httpx.get(f"http://{served.metrics}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {
        "model_infer_request_success",
        "instatune_batch_rows",
        "process_resident_memory_bytes",
        "grpc_server_handled",
    } <= families.keys()
    models = {sample.labels["model"] for sample in families["model_infer_request_success"].samples}
    assert models == {"tiny"}  # names that are no model's are not kept
    statuses = {sample.labels["status_code"] for sample in families["rest_server_requests"].samples}
    assert {"200", "400"} <= statuses


def test_a_request_that_has_come_is_answered_after_sigterm(artifact: Artifact) -> None:
    with serving(artifact.directory, "--max-batch-time", 1500) as found:
        with httpx.Client(base_url=f"http://{found.http}", timeout=60) as client, ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(infer, client, text_body("good"), "model")
            with triton_grpc.InferenceServerClient(found.grpc) as other:
                also = pool.submit(other.infer, "model", [text_input(triton_grpc, ["bad"])])
                time.sleep(0.5)
                found.process.send_signal(signal.SIGTERM)
                assert waiting.result().status_code == 200
                assert also.result().as_numpy("logits").shape == (1, 3)
        assert found.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{found.http}/v2")


def test_what_cannot_be_served_is_one_line(artifact: Artifact, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = {
            (str(tmp_path),): (1, f"error: {tmp_path} is not an artifact, for {tmp_path}/instatune.json is missing"),
            (str(artifact.directory), "--http-port", str(port)): (2, f"error: cannot listen on 127.0.0.1:{port}: Address already in use"),
            (str(artifact.directory), "--grpc-port", str(port)): (2, f"error: cannot listen on 127.0.0.1:{port}: "),
            (str(artifact.directory), "--host", "no.such.host.invalid"): (2, "error: cannot listen on no.such.host.invalid:0: "),
        }  # fmt: skip
        free = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command = [sys.executable, "-m", "instatune_deploy", "serve", *free]
        processes = {
            given: subprocess.Popen([*command, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for given in wrong
        }
        for given, (code, line) in wrong.items():
            out, err = processes[given].communicate(timeout=120)
            assert (processes[given].returncode, out) == (code, "")
            assert err.strip().splitlines()[-1].startswith(line), err


def test_without_the_extra_it_is_named() -> None:
    blocked = (
        "import sys; sys.argv = ['instatune-deploy', 'serve', 'DIR']; import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'mlserver' else find(name, *a)\n"
        "from instatune_deploy.faces.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.strip()) == (
        2, "error: mlserver is not installed: pip install 'instatune-deploy[serve]'",
    )  # fmt: skip

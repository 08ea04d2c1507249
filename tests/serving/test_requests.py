"""Requests beside each other, without a server: no answer follows from who else asks, and no request keeps others waiting for
its encoding.

The server's modules are imported in a process of their own: MLServer's messages and those of Triton's client, which other tests
load, cannot be in one.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instatune_deploy.data.dataset import open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.fleets import write_fleet
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.front import Measured
from instatune_deploy.values.recipe import DataSection, Task
from tests.serving.processes import export_text, reference, run_code
from tests.task_data import SECTIONS, TOKENS, write_rows

pytestmark = pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve")

BATCHER = """
import asyncio, threading
import numpy as np
from mlserver.errors import MLServerError
from instatune_deploy.serving.batcher import Batcher

go = threading.Event()

class Session:
    def run(self, inputs):
        go.wait(60)
        return (inputs["x"],)
    def close(self):
        pass

async def refused(batcher, rows):
    try:
        await batcher("", {"x": np.zeros((rows, 1))})
    except MLServerError as error:
        return error.status_code, str(error)

async def main():
    batcher = Batcher({"": [Session()]}, padding={}, per_token=False, max_rows={"": 4}, max_wait_s=0)
    whole = np.arange(1000.0)[:, None]
    first = asyncio.create_task(batcher("", {"x": whole}))
    while batcher.rows_waiting != 996:  # a call has taken four
        await asyncio.sleep(0.01)
    for rows, status, reason in ((29, 429, "996 rows wait already, of at most 1024"), (1025, 400, "send fewer at a time")):
        found = await refused(batcher, rows)
        assert found[0] == status and reason in found[1], found
    go.set()
    assert np.array_equal((await first)[0], whole)
    assert await refused(batcher, 29) is None
    await batcher.close()

asyncio.run(main())
"""
#: Of what the next ones do: a model, and what it answers.
MODEL = """
import asyncio, json, sys, threading
import numpy as np
from mlserver import ModelSettings
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest
from instatune_deploy.serving.model import ArtifactModel
from instatune_deploy.values.serving import ServeSettings

async def load(directory):
    model = ArtifactModel(ModelSettings.model_validate(ServeSettings(max_wait_s=0.2).model(directory)))
    await model.load()
    return model

async def ask(model, parameters=None, **words):
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": texts} for name, texts in words.items()
    ]
    payload = {"inputs": inputs, "parameters": parameters or {}}
    response = await model.predict(InferenceRequest.model_validate(payload))
    return {one.name: np.reshape(np.asarray(one.data.root), one.shape).tolist() for one in response.outputs}
"""
CROWD = f"""{MODEL}
async def main():
    model, texts = await load(sys.argv[1]), json.loads(sys.argv[2])
    alone = [await ask(model, text=[text]) for text in texts]
    joined = await asyncio.gather(*(ask(model, text=[text]) for text in texts))
    print(json.dumps([alone, joined, await ask(model, text=texts)], default=bytes.decode))
    await model.unload()

asyncio.run(main())
"""
#: A tokenizer that is used while it is in use fails, as a real one does where its truncation changes.
BORROWED = f"""{MODEL}
def guard(processor, wait):
    lock, encode = threading.Lock(), processor.encode_questions
    def guarded(*arguments):
        if not lock.acquire(blocking=False):
            raise RuntimeError("Already borrowed")
        with_lock()
        try:
            return encode(*arguments)
        finally:
            lock.release()
    def with_lock():
        if wait:
            began.set()
            go.wait(60)
    processor.encode_questions = guarded

began, go = threading.Event(), threading.Event()

async def main():
    model = await load(sys.argv[1])
    guard(model._codec.processor, wait=True)
    if model._codec_of_few is not None:
        guard(model._codec_of_few.processor, wait=False)
    small, large = dict(question=["good"], context=["bad film"]), dict(question=["good"], context=["film " * 1000])
    expected = asyncio.create_task(ask(model, **small))
    gone, kept = (asyncio.create_task(ask(model, **large)) for _ in range(2))
    while not began.is_set():
        await asyncio.sleep(0.01)
    gone.cancel()
    for _ in range(3):  # while the large ones are encoded
        assert await asyncio.wait_for(ask(model, **small), 60) == await expected
    go.set()
    assert len((await kept)["answers"]) == 1
    assert await ask(model, **small) == await expected
    await model.unload()

asyncio.run(main())
"""
LARGE = f"""{MODEL}
async def main():
    model = await load(sys.argv[1])
    def never(*arguments):
        raise AssertionError("it is encoded")
    kept, model._codec.processor.encode_questions = model._codec.processor.encode_questions, never
    for words in (
        dict(question=["good"], context=["film " * 100_000]), dict(question=["good"], context=["f-m" * 100_000]),
        dict(question=["good"] * 1025, context=["film " * 9] * 1025), dict(question=["good"] * 9, context=["film " * 9_000] * 9),
    ):
        try:
            await ask(model, **words)
        except InferenceError as error:
            assert "send" in str(error) and "at a time" in str(error), error
        else:
            raise AssertionError("it is answered")
    model._codec.processor.encode_questions = kept
    assert len((await ask(model, question=["good"], context=["film " * 5_000]))["answers"]) == 1
    await model.unload()

asyncio.run(main())
"""
WINDOWS = f"""{MODEL}
from instatune_deploy.serving.tensors import Input

async def main():
    model = await load(sys.argv[1])
    given = {{name: Input(name, "BYTES", (len(texts),), texts, None) for name, texts in json.loads(sys.argv[2]).items()}}
    encoded = model._codec.encode(given).inputs
    rows = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    print(json.dumps([ids[mask == 1].tolist() for ids, mask in rows]))
    await model.unload()

asyncio.run(main())
"""
MEMBERS = f"""{MODEL}
async def main():
    model = await load(sys.argv[1])
    wanted = [{{"member": name}} for name in sys.argv[3:]] or [None]
    print(json.dumps([(await ask(model, one, text=json.loads(sys.argv[2])))["logits"] for one in wanted]))
    await model.unload()

asyncio.run(main())
"""


def test_rows_beyond_those_that_may_wait_are_refused() -> None:
    run_code(BATCHER)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_no_answer_follows_from_who_else_asks(task: Task, tmp_path: Path) -> None:
    artifact = export_text(task, tmp_path, deployment=Deployment("onnxruntime", "int8"))
    texts = ["good film", "very bad plots and awful cast", "happy", "sad films good very plot casts awful", "bad"]
    alone, joined, one_request = json.loads(run_code(CROWD, artifact.directory, json.dumps(texts)))
    assert joined == alone
    for row, (text, own) in enumerate(zip(texts, alone, strict=True)):
        width = len(own["logits"][0]) if task == "token-classification" else None
        assert one_request["logits"][row][:width] == own["logits"][0], text
        words = len(text.split()) if task == "token-classification" else None
        for name in ("labels", "scores"):
            found = one_request[name][row]
            assert (found if words is None else found[:words]) == own[name][0]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_text("question-answering", tmp_path_factory.mktemp("answers"))


def test_a_request_that_is_encoded_or_given_up_keeps_no_other_waiting(answers: Artifact) -> None:
    run_code(BORROWED, answers.directory)


def test_a_context_of_too_many_windows_is_refused_before_it_is_encoded(answers: Artifact) -> None:
    run_code(LARGE, answers.directory)


def test_windows_are_those_of_the_evaluation(answers: Artifact, tmp_path: Path) -> None:
    task: Task = "question-answering"
    path = write_rows(tmp_path / "rows.parquet", task, 30, seed=3)
    section = DataSection(train=str(path), search_rows=5, report_rows=1, shuffle=False, **SECTIONS[task])
    made = open_task_data(section, task, Processor(str(answers.directory), task, TOKENS), seed=0).train
    asked: dict[str, Any] = {"question": made.labels.asked["question"], "context": made.labels.contexts}
    asked = {name: list(texts) for name, texts in asked.items()}
    served = json.loads(run_code(WINDOWS, answers.directory, json.dumps(asked)))
    assert served == [list(ids) for ids in made.rows["input_ids"]]
    assert len(served) > len(made)  # some contexts have several


CUT = 8
LONG = ["very bad plots and awful cast good films very happy sad", "good"]


def cut_text(directory: Path, tokens: int, architecture: str) -> Artifact:
    """An artifact whose texts are cut to `CUT` tokens and filled up to more."""
    artifact = export_text("text-classification", directory, architecture, tokens=CUT, fixed=FixedSizes(1, tokens))
    return artifact.with_measured(Measured(0.9, 100, tokens, tokens, tokens, tokens, 100))


def expected(artifact: Artifact, tokens: int) -> np.ndarray:
    """Logits of `LONG`, cut to `CUT` tokens and filled up to `tokens`."""
    inner = Processor(str(artifact.directory), "text-classification", CUT).inner
    options = {"truncation": True, "return_tensors": "np"}
    rows = [dict(inner(text, max_length=CUT, **options)) for text in LONG]
    filled = [{name: np.pad(ids, ((0, 0), (0, tokens - ids.shape[1]))) for name, ids in row.items()} for row in rows]
    return np.concatenate([reference(artifact, row)["logits"] for row in filled])


def test_texts_are_cut_as_they_were_evaluated_whatever_length_is_fixed(tmp_path: Path) -> None:
    artifact = cut_text(tmp_path, 14, "2L[4-64 2-16]")
    (found,) = json.loads(run_code(MEMBERS, artifact.directory, json.dumps(LONG)))
    assert np.abs(np.asarray(found) - expected(artifact, 14)).max() < 1e-5


def test_members_of_a_fleet_fill_up_each_to_its_own_length(tmp_path: Path) -> None:
    sizes = {"long": (16, "3L[4-64 4-64 4-64]"), "short": (10, "2L[2-16 2-16]")}
    made = {name: cut_text(tmp_path / name, *size) for name, size in sizes.items()}
    fleet = write_fleet({name: artifact.directory for name, artifact in made.items()}, tmp_path / "fleet")
    found = json.loads(run_code(MEMBERS, fleet.directory, json.dumps(LONG), *sizes))
    for (name, (tokens, _)), logits in zip(sizes.items(), found, strict=True):
        assert np.abs(np.asarray(logits) - expected(made[name], tokens)).max() < 1e-5

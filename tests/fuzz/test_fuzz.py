"""Whatever files and requests hold, reading them ends in what they say or in an error of our own; `benchmarks/fuzz.py` tries more."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.mutating import mutations
from tests.fuzz.readers import FILES, ROOT, Reader

#: Fewer of those that take a millisecond and more, for YAML's reader is written in Python.
INPUTS = {"recipe": 150, "target": 150, "kit": 200}

#: Mutations that readers once ended in an exception for.
ONCE_CRASHED = {
    "kit": [
        "8e173c9536a45c4bcc79d7b7ccdfd4b4702e9bceef306e787de9fc10f73fc9cc212cab153b84",  # an infinite depth
        "a9763dbcfc0703189d746f5f9a41bd8eaebdc498f11e0f8dba5ef3c109250ace40e2cc71dac8",  # an entry without a name
    ],
    "packed kit": [
        "3cbbd0bb9c13cb1e2b2557f0268f49aa97a3de34109696f92773ee20b6fbf12ed40e7f9a7b93",  # a name of 2,000 brackets
    ],
}


@pytest.fixture(scope="module", params=FILES)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return FILES[request.param](tmp_path_factory.mktemp("fuzz"))


def test_the_seeds_are_valid(reader: Reader) -> None:
    for number in range(len(reader.seeds)):
        assert reader.accepts(reader.document(bytes([number, 0])))


def test_what_crashed_once_is_refused(reader: Reader) -> None:
    for mutation in ONCE_CRASHED.get(reader.name, []):
        assert not reader.accepts(reader.document(bytes.fromhex(mutation)))


def test_a_changed_file_is_read_or_refused(reader: Reader) -> None:
    @settings(max_examples=INPUTS.get(reader.name, 400), deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutations())
    def feed(mutation: bytes) -> None:
        reader.accepts(reader.document(mutation))

    feed()


@pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve")
def test_a_changed_request_is_read_or_refused() -> None:
    """In a process of its own: see `tests.fuzz.requests`."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--check", "--inputs", "400", "--readers", "rest", "grpc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"crashes": 0') == 2


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch PWNED']", "!!python/name:os.system", "&a [*a]", "[" * 5000]
)
def test_yaml_is_plain_values(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipe", "target"):
        folder = tmp_path / name
        folder.mkdir()
        assert not FILES[name](folder).accepts(f"name: {text}\n".encode())
    assert not (tmp_path / "PWNED").exists()


def test_yaml_of_a_few_lines_cannot_stand_for_billions(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert not FILES["target"](tmp_path).accepts("\n".join(lines).encode())

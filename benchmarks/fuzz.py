"""Claim: whatever a file or a request of others holds, reading it ends in what it says or in an error of our own, of one line.

``python -m benchmarks.fuzz`` feeds 100,000 changed documents to each reader of recipes, targets, tables, kits and their results, manifests,
evaluations, and to the decoding of REST and gRPC requests, by the mutations that the tests have (`tests.fuzz.mutating`): a tenth of them are
drawn by Hypothesis, the rest at random, which is ten times as fast. Every exception
that is not an error of our own, or of the protocol, is a crash. With ``--guided N``, atheris, where it is installed (it is in no extra),
adds N inputs a reader that are guided by the code which they reach. It adds to results/fuzz.json; stopped at any point, the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.results import read_rows, write_result
from instatune_deploy.workspace import write_json
from tests.fuzz.mutating import MUTATION_BYTES, mutations
from tests.fuzz.readers import FILES, Reader

RUN = Path("runs/fuzz")
REQUESTS = ("rest", "grpc")
#: Inputs between two records.
CHUNK = 5000
#: Crashes of a chunk of which the document is kept.
_KEPT = 5


def make_reader(name: str, directory: Path) -> Reader:
    """A reader by name, with its file in `directory`."""
    if name in REQUESTS:
        from tests.fuzz.requests import request_reader

        return request_reader(name, directory)
    return FILES[name](directory)


class Tally:
    """What became of inputs."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.inputs = self.accepted = self.crashes = 0
        self.kept: list[dict[str, str]] = []

    def feed(self, mutation: bytes) -> None:
        """One input; a crash is kept, and nothing is raised."""
        document = self._reader.document(mutation)
        self.inputs += 1
        try:
            self.accepted += self._reader.accepts(document)
        except Exception as error:
            self.crashes += 1
            if len(self.kept) < _KEPT:
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {error!s:.300} ({Path(where.filename).name}:{where.lineno})"
                self.kept.append({"error": what, "document": document[:4000].decode("latin-1")})

    def row(self, seed: int, means: str, seconds: float) -> dict[str, Any]:
        """For the result."""
        return {
            "reader": self._reader.name, "means": means, "seed": seed, "split": "none", "n": self.inputs, "inputs": self.inputs,
            "accepted": self.accepted, "crashes": self.crashes, "seconds": round(seconds, 1), "kept": self.kept,
        }  # fmt: skip


def chunk(reader: Reader, seed: int, count: int, means: str = "hypothesis") -> dict[str, Any]:
    """`count` inputs, or a few less where Hypothesis has tried all that it thinks of."""
    tally, began = Tally(reader), time.monotonic()
    if means == "random":
        rng = random.Random(seed)
        for _ in range(count):
            tally.feed(rng.randbytes(MUTATION_BYTES))
        return tally.row(seed, means, time.monotonic() - began)

    @hypothesis.seed(seed)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutations())
    def feed(mutation: bytes) -> None:
        tally.feed(mutation)

    feed()
    return tally.row(seed, "hypothesis", time.monotonic() - began)


def rows(name: str, means: str = "*") -> list[dict[str, Any]]:
    """What was tried so far of a reader."""
    paths = sorted(RUN.glob(f"{_stem(name)}-{means}-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def take_up() -> None:
    """Lay out what the last result has, so that this one adds to it."""
    for row in read_rows("fuzz"):
        path = record(row)
        if not path.exists():
            write_json(path, row)


def record(row: dict[str, Any]) -> Path:
    """Where a row is kept until there is a result of all."""
    return RUN / f"{_stem(row['reader'])}-{row['means']}-{row['seed']:04d}.json"


def tried(name: str, means: str = "*") -> int:
    """How many inputs."""
    return sum(row["inputs"] for row in rows(name, means))


def _stem(name: str) -> str:
    return name.replace(" ", "_")


def _guided(name: str, count: int) -> None:
    """`count` inputs by atheris, in processes of their own, for it ends the one that it is in."""
    while tried(name, "atheris") < count:
        before = tried(name, "atheris")
        command = [
            sys.executable,
            "-m",
            "benchmarks.fuzz_guided",
            name,
            str(count - before),
            str(len(rows(name, "atheris"))),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried(name, "atheris") == before:
            raise SystemExit(f"atheris: {done.stderr.strip().splitlines()[-1:]}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of each reader")
    parser.add_argument("--guided", type=int, default=0, metavar="N", help="inputs of each reader by atheris")
    parser.add_argument("--readers", nargs="+", choices=[*FILES, *REQUESTS], default=[*FILES, *REQUESTS])
    parser.add_argument("--check", action="store_true", help="record nothing; fail at a crash")
    wanted = parser.parse_args(arguments)
    found = 0
    if not wanted.check:
        RUN.mkdir(parents=True, exist_ok=True)
        take_up()
    for name in wanted.readers:
        with tempfile.TemporaryDirectory(dir=_memory(), prefix="instatune-fuzz-") as folder:
            reader = make_reader(name, Path(folder))
            if wanted.check:
                row = chunk(reader, 0, wanted.inputs)
                found += row["crashes"]
                print(json.dumps(row))
                continue
            while (done := tried(name, "hypothesis") + tried(name, "random")) < wanted.inputs:
                means = "hypothesis" if tried(name, "hypothesis") < wanted.inputs / 10 else "random"
                seed = len(rows(name, means))
                row = chunk(reader, seed, min(CHUNK, wanted.inputs - done), means)
                write_json(record(row), row)
                left_s = (wanted.inputs - done - row["inputs"]) * row["seconds"] / row["inputs"]
                print(
                    f"{name}: {done + row['inputs']} inputs, {row['crashes']} new crashes, {left_s / 60:.0f} min left",
                    flush=True,
                )
        if wanted.guided:
            _guided(name, wanted.guided)
            print(f"{name}: {tried(name, 'atheris')} inputs by atheris", flush=True)
    if wanted.check:
        return 1 if found else 0
    every = [row for name in [*FILES, *REQUESTS] for row in rows(name)]
    figures: dict[str, float] = {key: sum(row[key] for row in every) for key in ("inputs", "crashes")}
    for name in dict.fromkeys(row["reader"] for row in every):
        mine = [row for row in every if row["reader"] == name]
        figures |= {f"{_stem(name)}.{key}": sum(row[key] for row in mine) for key in ("inputs", "accepted", "crashes")}
    figures["guided.inputs"] = sum(row["inputs"] for row in every if row["means"] == "atheris")
    claim = "Whatever a file or a request of others holds, reading it ends in what it says or in an error of our own, of one line."
    print(write_result("fuzz", claim, figures, every))
    return 0


def _memory() -> str | None:
    """A file system in memory, where there is one: each input is a file."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

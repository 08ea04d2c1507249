"""Inputs for a reader that atheris guides by the code they reach: what ``python -m benchmarks.fuzz --guided N`` starts."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["instatune_deploy.values", "instatune_deploy.kit", "instatune_deploy.serving", "yaml"]
):
    from benchmarks.fuzz import Tally, make_reader, record

from instatune_deploy.workspace import write_json

#: Inputs between two records: atheris ends its process without a word.
_EVERY = 500


def main() -> None:
    name, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    reader = make_reader(name, Path(tempfile.mkdtemp(dir="/dev/shm", prefix="instatune-fuzz-")))
    tally, began = Tally(reader), time.monotonic()

    def one(data: bytes) -> None:
        tally.feed(data)
        if tally.inputs % _EVERY == 0 or tally.inputs >= count:
            row = tally.row(seed, "atheris", time.monotonic() - began)
            write_json(record(row), row)

    atheris.Setup([sys.argv[0], f"-runs={count}", f"-seed={seed + 1}", "-max_len=64", "-rss_limit_mb=0"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

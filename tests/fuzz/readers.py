"""Everything that reads a file or a request of others, with valid documents for it and the errors that it may raise."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from instatune_deploy.errors import InstatuneError
from instatune_deploy.kit.results import read_results
from instatune_deploy.kit.runner import MACHINE, MANIFEST, MANIFEST_HASH, RESULTS, read_kit
from instatune_deploy.values.evaluations import read_evaluations
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.manifest import MANIFEST_NAME, Manifest
from instatune_deploy.values.recipe import read_recipe
from instatune_deploy.values.target import read_target
from tests.fuzz.mutating import as_json, edits_of, mutated

ROOT = Path(__file__).parents[2]
SEEDS = Path(__file__).parent / "seeds"


@dataclass(frozen=True)
class Reader:
    """One thing that reads.

    Args:
        seeds: trees or bytes of valid documents; `dump` writes the trees.
        read: reads the bytes of a document. errors: what it may raise.
    """

    name: str
    seeds: Sequence[Any]
    read: Callable[[bytes], object]
    dump: Callable[[Any], bytes] = as_json
    errors: tuple[type[Exception], ...] = (InstatuneError,)

    def document(self, mutation: bytes) -> bytes:
        """What a mutation makes, see `mutating.edits_of`."""
        number, edits = edits_of(mutation)
        return mutated(self.seeds[number % len(self.seeds)], edits, self.dump)

    def accepts(self, data: bytes) -> bool:
        """Whether a document is read; it may be refused, but only by an error of `errors` that is one line."""
        try:
            self.read(data)
        except self.errors as error:
            if "\n" in str(error).strip():
                raise AssertionError(f"an error of several lines: {str(error)!r:.300}") from error
            return False
        return True


def _yaml(name: str, directory: Path, texts: Sequence[str], read: Callable[[Path], object]) -> Reader:
    path = directory / f"{name}.yaml"

    def from_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    trees = [yaml.safe_load(text) for text in texts]
    return Reader(name, [*trees, *trees, *(text.encode() for text in texts)], from_bytes)


def _table(directory: Path) -> Reader:
    names = ["bert-h384-d32-6x12x1536-t128/ort-fp32-1t.json", "vit-h128-d16-6x8x512-t17/ov-int8-1t.json"]
    texts = [(ROOT / "latency_tables" / "cpu-avx512" / name).read_text(encoding="utf-8") for name in names]
    trees = [json.loads(text) for text in texts]
    for tree in trees:  # a few samples say as much as thirty
        tree["samples"], tree["heldout"] = tree["samples"][:2], []
    path = directory / "table.json"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return LatencyTable.read(path)

    return Reader("table", trees, read)


def _manifest(directory: Path) -> Reader:
    folder = directory / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"a model")
    tree = json.loads((SEEDS / MANIFEST_NAME).read_text(encoding="utf-8"))
    tree["files"] = {"model.onnx": hashlib.sha256(b"a model").hexdigest()}

    def read(data: bytes) -> object:
        (folder / MANIFEST_NAME).write_bytes(data)
        found = Manifest.read(folder)
        found.verify(folder)
        return found

    return Reader("manifest", [tree], read)


def _evaluations(directory: Path) -> Reader:
    path = directory / "evaluations.jsonl"
    lines = [json.loads(line) for line in (SEEDS / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_evaluations(path)

    def dump(tree: Any) -> bytes:
        return b"\n".join(map(as_json, tree if isinstance(tree, list) else [tree])) + b"\n"

    return Reader("evaluations", [lines], read, dump)


def _zipped(tree: Any) -> bytes:
    """Results as a device writes them, with hashes that fit, of files that may not."""
    stream = io.BytesIO()
    files = dict(tree) if isinstance(tree, dict) else {RESULTS: tree}
    contents = {
        str(name).encode("utf-8", "replace").decode() or "x": b"\n".join(map(as_json, value))
        if str(name).endswith(".jsonl") and isinstance(value, list) else as_json(value)
        for name, value in files.items()
    }  # fmt: skip
    if isinstance(results := files.get(RESULTS), dict) and isinstance(hashes := results.get("sha256"), dict):
        found = {
            n: hashlib.sha256(contents[n]).hexdigest() if n in contents and n != RESULTS else h
            for n, h in hashes.items()
        }
        contents[RESULTS] = as_json({**results, "sha256": found})
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _kit(directory: Path) -> Reader:
    names = [RESULTS, MANIFEST, MACHINE]
    tree = {name: json.loads((SEEDS / "kit" / name).read_text(encoding="utf-8")) for name in names}
    rounds = next((SEEDS / "kit" / "rounds").iterdir())
    tree[f"rounds/{rounds.name}"] = [json.loads(line) for line in rounds.read_text(encoding="utf-8").splitlines()]
    path = directory / "results.zip"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_results(path)

    return Reader("kit", [tree], read, _zipped)


def _packed(directory: Path) -> Reader:
    """The kit itself, on the device."""
    root = directory / "kit"
    root.mkdir()
    tree = json.loads((SEEDS / "kit" / MANIFEST).read_text(encoding="utf-8"))
    for name in {*tree["inputs"].values(), *(file for files in tree["models"].values() for file in files.values())}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"a file")
    tree["sha256"] = {name: hashlib.sha256(b"a file").hexdigest() for name in tree["sha256"] if (root / name).is_file()}

    def read(data: bytes) -> object:
        (root / MANIFEST).write_bytes(data)
        (root / MANIFEST_HASH).write_text(hashlib.sha256(data).hexdigest(), encoding="ascii")
        return read_kit(root)

    return Reader("packed kit", [tree], read)


def _recipe(directory: Path) -> Reader:
    return _yaml("recipe", directory, [(SEEDS / "recipe.yaml").read_text(encoding="utf-8")], read_recipe)


def _target(directory: Path) -> Reader:
    paths = [*sorted((ROOT / "targets").glob("cpu-avx512*.yaml")), ROOT / "targets" / "gpu-cuda.yaml"]
    return _yaml("target", directory, [path.read_text(encoding="utf-8") for path in paths], read_target)


#: The readers of files by name; each makes its file in a directory of its own.
FILES: dict[str, Callable[[Path], Reader]] = {
    "recipe": _recipe, "target": _target, "table": _table, "kit": _kit, "packed kit": _packed, "manifest": _manifest,
    "evaluations": _evaluations,
}  # fmt: skip

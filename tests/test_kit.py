"""A kit is packed here, measured by a process that has nothing but NumPy and the runtimes, and imported here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from instatune_deploy import __version__
from instatune_deploy.device.fingerprint import detect, runtime_versions
from instatune_deploy.device.samples import Samples
from instatune_deploy.errors import ArtifactError, InstatuneError, MeasurementError, TableError, UsageError
from instatune_deploy.faces.cli import app
from instatune_deploy.kit import import_results
from instatune_deploy.kit.manifest import Kit, parse
from instatune_deploy.kit.runner import why_not
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.space import SearchSpace
from tests.helpers import write_text_model

#: Of a device: the standard library, and what the runtimes install with them.
ALLOWED = ("instatune_deploy", "numpy", "onnxruntime", "openvino", "openvino_telemetry", "packaging")
#: Python imports it at start, the runner's process and the measuring one alike: they have the path from PYTHONPATH.
SITE = f"""
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and not top.startswith("_") and top not in {ALLOWED!r}:
            raise ModuleNotFoundError(f"forbidden on a device: {{name}}", name=name)

sys.meta_path.insert(0, Forbid())
"""
TARGET = {
    "name": "cpu-test",
    "description": "any CPU",
    "device": "cpu",
    "deployments": [
        {"runtime": "onnxruntime"},
        {"runtime": "openvino"},
        {"runtime": "openvino", "precision": "bf16", "needs": ["no_such_flag"]},
        {"runtime": "torch"},
    ],
}
MEASURED = ("ort-fp32-1t", "ov-fp32-1t")
ROUNDS = "rounds/ort-fp32-1t.jsonl"
Change = Callable[[dict[str, Any]], None]


@dataclass
class Packed:
    """A kit that was packed, unzipped and run."""

    folder: Path
    kit: Kit
    zip: Path
    said: str
    ran: subprocess.CompletedProcess

    @property
    def root(self) -> Path:
        return self.folder / "kit"

    @property
    def results(self) -> Path:
        return self.root / "results.zip"


def run_kit(root: Path, folder: Path) -> subprocess.CompletedProcess:
    """``python run.py`` in a process that can import nothing that a device need not have."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    command = [sys.executable, str(root / "run.py")]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def unzip(path: Path, root: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(root)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("kit")
    (folder / "cpu-test.yaml").write_text(yaml.safe_dump(TARGET), encoding="utf-8")
    model = write_text_model(folder / "model")
    path = folder / "out" / "kit.zip"
    arguments = ["--pack", path, "--target", folder / "cpu-test.yaml", "--model", model, "--sequence-length", 8]
    cheap = ["--heldout", 2, "--seconds", 0.2, "--wait-seconds", 0, "--spare-probes", 0, "--json"]
    found = CliRunner().invoke(app, ["profile", *map(str, [*arguments, *cheap])])
    assert found.exit_code == 0, found.output
    with zipfile.ZipFile(path) as archive:
        kit = parse(Kit, archive.read("kit.json"), "kit.json")
    assert json.loads(found.stdout) == {
        "kit": str(path),
        "bytes": path.stat().st_size,
        "target": "cpu-test",
        "deployments": [deployment.name for deployment in kit.deployments],
        "networks": len(kit.visits),
    }
    unzip(path, folder / "kit")
    return Packed(folder, kit, path, found.stderr, run_kit(folder / "kit", folder))


def test_a_kit_is_whole_and_leaves_nothing_else_behind(packed: Packed) -> None:
    assert [path.name for path in packed.zip.parent.iterdir()] == ["kit.zip"]
    assert "torch-fp32-1t left out: a kit measures onnxruntime and openvino alone" in packed.said
    with zipfile.ZipFile(packed.zip) as archive:
        names = set(archive.namelist())
        assert all(hashlib.sha256(archive.read(name)).hexdigest() == h for name, h in packed.kit.sha256.items())
    assert names == {*packed.kit.sha256, "kit.json", "kit.sha256"}
    # bf16 and fp32 of OpenVINO share their files.
    assert sum(name.endswith(".xml") for name in names) == len(packed.kit.visits)


def test_a_device_needs_numpy_and_the_runtimes_alone(packed: Packed) -> None:
    assert packed.ran.returncode == 0, packed.ran.stderr
    assert "ov-bf16-1t skipped: needs no_such_flag" in packed.ran.stderr
    assert "forbidden" not in packed.ran.stderr
    # The hook works: a module that would have been imported is refused.
    site = {**os.environ, "PYTHONPATH": str(packed.folder / "site")}
    refused = subprocess.run([sys.executable, "-c", "import psutil"], env=site, capture_output=True, check=False)
    assert b"forbidden on a device: psutil" in refused.stderr


def test_results_become_tables(packed: Packed, tmp_path: Path) -> None:
    lines: list[str] = []
    tables = import_results(packed.results, tmp_path, report=lines.append)
    assert [table.deployment.name for table in tables] == list(MEASURED)
    assert any(line.startswith("ov-bf16-1t was not measured: needs no_such_flag") for line in lines)
    here, versions = detect(), runtime_versions()
    for table in tables:
        path = tmp_path / table.file_name
        assert path == tmp_path / "cpu-test" / packed.kit.signature / f"{table.deployment.name}.json"
        # Pydantic reads lists as tuples, so the table is equal to what was returned.
        assert LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path)) == table
        assert (table.error.n, len(table.samples)) == (2, len(packed.kit.probes))
        assert (table.machine.cpu_model, table.machine.logical_cpus) == (here.cpu_model, here.logical_cpus)
        assert table.machine.instruction_sets == here.instruction_sets
        assert table.versions[table.deployment.runtime] == versions[table.deployment.runtime]
        assert table.versions["instatune_deploy"] == __version__
        assert table.options
        assert sha256_file(tmp_path / table.raw_name) == table.raw_sha256
        assert len(Samples.read(tmp_path / table.raw_name).names) == len(packed.kit.visits)
        assert table.missing(SearchSpace.from_dict(packed.kit.space)) == []


def test_what_was_interrupted_goes_on_and_what_was_done_stays(packed: Packed, tmp_path: Path) -> None:
    root = tmp_path / "kit"
    shutil.copytree(packed.root, root)
    (root / "results.zip").unlink()
    rounds = {name: (root / "work" / name / "rounds.jsonl").read_text() for name in MEASURED}
    # As if it had been stopped within the third round of the second deployment.
    (root / "work" / "ov-fp32-1t" / "done.json").unlink()
    kept = "".join(line + "\n" for line in rounds["ov-fp32-1t"].splitlines()[:2])
    (root / "work" / "ov-fp32-1t" / "rounds.jsonl").write_text(kept + '{"visits": [["1')
    ran = run_kit(root, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (root / "work" / "ort-fp32-1t" / "rounds.jsonl").read_text() == rounds["ort-fp32-1t"]
    again = (root / "work" / "ov-fp32-1t" / "rounds.jsonl").read_text()
    assert again.startswith(kept)
    assert len(again.splitlines()) > 2
    assert len(import_results(root / "results.zip", tmp_path / "tables", report=lambda _: None)) == 2


@pytest.mark.parametrize("name", ["kit.json", "instatune_deploy/device/worker.py", "inputs/batch-1.npz"])
def test_a_kit_that_was_changed_is_not_run(packed: Packed, tmp_path: Path, name: str) -> None:
    unzip(packed.zip, tmp_path / "kit")
    flip_byte(tmp_path / "kit" / name)
    ran = run_kit(tmp_path / "kit", tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert name in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "kit" / "results.zip").exists()


def test_a_machine_that_is_not_of_the_target_is_told_so(packed: Packed, tmp_path: Path) -> None:
    root = tmp_path / "kit"
    unzip(packed.zip, root)
    kit = json.loads((root / "kit.json").read_text(encoding="utf-8"))
    text = json.dumps({**kit, "instruction_sets": ["no_such_flag"]})
    (root / "kit.json").write_text(text, encoding="utf-8")
    (root / "kit.sha256").write_text(hashlib.sha256(text.encode()).hexdigest(), encoding="ascii")
    ran = run_kit(root, tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "target cpu-test needs no_such_flag" in ran.stderr


def test_a_runtime_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "instatune_deploy.device.runtimes.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    versions: dict[str, str] = {}
    facts = {"instruction_sets": [], "cpu_model": "Some CPU", "logical_cpus": 1}
    assert why_not(Deployment("openvino"), facts, versions) == "openvino is not installed: pip install openvino"
    assert why_not(Deployment("onnxruntime"), facts, versions) is None
    assert versions == {"onnxruntime": runtime_versions()["onnxruntime"]}
    assert why_not(Deployment("onnxruntime", threads=2), facts, versions) == "needs 2 CPUs, this process may use 1"


# -- results that do not fit ----------------------------------------------------------------------------------------


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewritten(source: Path, path: Path, changes: dict[str, Callable[[bytes], bytes]], *, rehash: bool) -> Path:
    """A copy of results with files changed; with `rehash`, their hashes are made to fit."""
    with zipfile.ZipFile(source) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for name, change in changes.items():
        contents[name] = change(contents[name])
    if rehash:
        results = json.loads(contents["results.json"])
        results["sha256"] = {
            name: hashlib.sha256(contents[name]).hexdigest() if name in contents else digest
            for name, digest in results["sha256"].items()
        }
        contents["results.json"] = json.dumps(results).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def in_json(change: Change) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        data = json.loads(content)
        change(data)
        return json.dumps(data).encode()

    return apply


def in_round(change: Change) -> Callable[[bytes], bytes]:
    """A change of the second round."""

    def apply(content: bytes) -> bytes:
        lines = content.splitlines()
        data = json.loads(lines[1])
        change(data)
        return b"\n".join([lines[0], json.dumps(data).encode(), *lines[2:]])

    return apply


def first_latency(value: Any) -> Change:
    return lambda done: done["visits"][0][3].__setitem__(0, value)


BAD = {
    "manifest's schema": ("kit.json", in_json(lambda d: d.update(schema_version=2)), ArtifactError, "schema_version: is 2"),
    "results' schema": ("results.json", in_json(lambda d: d.update(schema_version=9)), ArtifactError, "schema_version: is 9"),
    "manifest's field": ("kit.json", in_json(lambda d: d.update(surprise=1)), ArtifactError, "kit.json: surprise"),
    "manifest's shape": ("kit.json", in_json(lambda d: d["shape"].update(layers=7)), ArtifactError, "signature: is bert-"),
    "a path for a name": ("kit.json", in_json(lambda d: d.update(target="../up")), ArtifactError, "must be names, not paths"),
    "a network not of the space": (
        "kit.json", in_json(lambda d: d["space"].update(depths=[3])), ArtifactError, "kit.json: ",
    ),
    "machine": ("machine.json", in_json(lambda d: d["machine"].pop("cpu_model")), ArtifactError, "machine.cpu_model"),
    "versions": ("machine.json", in_json(lambda d: d["versions"].pop("openvino")), ArtifactError, "lacks openvino"),
    "not JSON": ("machine.json", lambda _: b"{", ArtifactError, "machine.json: not JSON"),
    "unknown network": (
        ROUNDS, in_round(lambda d: d["visits"][0].__setitem__(0, "1L[9-9]")), ArtifactError, "'1L[9-9]', which is not in the kit",
    ),
    "a visit too few": (ROUNDS, in_round(lambda d: d["visits"].pop()), ArtifactError, "round 2: has "),
    "no runs": (ROUNDS, in_round(lambda d: d["visits"][0].__setitem__(3, [])), ArtifactError, "has 0 latencies"),
    "NaN": (ROUNDS, in_round(first_latency(float("nan"))), MeasurementError, "impossible latency: nan ms"),
    "zero": (ROUNDS, in_round(first_latency(0)), MeasurementError, "impossible latency: 0 ms"),
    "text": (ROUNDS, in_round(first_latency("1")), MeasurementError, "impossible latency: 1 ms"),
    "not a round": (ROUNDS, lambda _: b"[1]\n", ArtifactError, "round 1: is not of the expected form"),
    "cut off": (ROUNDS, lambda content: content[:-20], ArtifactError, "is not of the expected form"),
    "no rounds": (ROUNDS, lambda _: b"", ArtifactError, "has no round"),
    "a deployment that nothing is said of": (
        "results.json", in_json(lambda d: d["failed"].clear()), ArtifactError, "ov-bf16-1t",
    ),
    "rounds that are missing": (
        "results.json", in_json(lambda d: d["measured"].update({"ort-int8-1t": {"options": {}, "date": "2025-01-01"}})),
        ArtifactError, "missing or not expected: rounds/ort-int8-1t.jsonl",
    ),
    "a date that is none": (
        "results.json", in_json(lambda d: d["measured"]["ort-fp32-1t"].update(date="soon")), ArtifactError, "soon",
    ),
}  # fmt: skip


def refused(results: Path, out: Path, kind: type[InstatuneError], message: str) -> None:
    """Make sure that results are refused in one line that names their file, and that nothing is written."""
    old = out / "cpu-test" / "old.json"
    old.parent.mkdir(parents=True)
    old.write_text("old", encoding="utf-8")
    with pytest.raises(InstatuneError) as found:
        import_results(results, out, report=lambda _: None)
    assert type(found.value) is kind
    assert message in str(found.value)
    assert str(results) in str(found.value)
    assert "\n" not in str(found.value)
    assert [path for path in out.rglob("*") if path.is_file()] == [old]
    assert old.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("fault", BAD)
def test_results_that_do_not_fit_are_refused(packed: Packed, tmp_path: Path, fault: str) -> None:
    name, change, kind, message = BAD[fault]
    bad = rewritten(packed.results, tmp_path / "bad.zip", {name: change}, rehash=True)
    refused(bad, tmp_path / "tables", kind, message)


@pytest.mark.parametrize("name", ["kit.json", "machine.json", ROUNDS])
def test_a_changed_byte_is_found(packed: Packed, tmp_path: Path, name: str) -> None:
    change = {name: lambda content: content.replace(b"1", b"2", 1)}
    bad = rewritten(packed.results, tmp_path / "bad.zip", change, rehash=False)
    refused(bad, tmp_path / "tables", ArtifactError, f"{name} was changed after measuring")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_zip_is_refused(packed: Packed, tmp_path: Path, share: float) -> None:
    content = packed.results.read_bytes()
    (tmp_path / "bad.zip").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "bad.zip", tmp_path / "tables", ArtifactError, "is damaged or not a zip file")


def test_a_file_that_the_zip_should_not_have_is_refused(packed: Packed, tmp_path: Path) -> None:
    shutil.copyfile(packed.results, tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "a") as archive:
        archive.writestr("evil", "")
    refused(tmp_path / "bad.zip", tmp_path / "tables", ArtifactError, "missing or not expected: evil")
    with zipfile.ZipFile(tmp_path / "bad.zip", "a") as archive:
        archive.writestr("../../evil", "")
    refused(tmp_path / "bad.zip", tmp_path / "others", ArtifactError, "'../../evil' leads out of it")


def test_a_kit_and_a_missing_file_are_no_results(packed: Packed, tmp_path: Path) -> None:
    refused(packed.zip, tmp_path / "a", ArtifactError, "it is the kit itself: run it on the device first")
    refused(tmp_path / "none.zip", tmp_path / "b", UsageError, "does not exist")


def test_results_of_nothing_say_why(packed: Packed, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed.results) as archive:
        contents = {name: archive.read(name) for name in archive.namelist() if not name.startswith("rounds/")}
    results = json.loads(contents["results.json"])
    results["failed"].update(dict.fromkeys(results["measured"], "onnxruntime is not installed"))
    results["measured"] = {}
    results["sha256"] = {name: digest for name, digest in results["sha256"].items() if name in contents}
    contents["results.json"] = json.dumps(results).encode()
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    refused(tmp_path / "bad.zip", tmp_path / "tables", MeasurementError, "ort-fp32-1t: onnxruntime is not installed")


# -- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--import", "a.zip", "--refit", "b.json"], "--import and --refit exclude each other"),
        (["--import", "a.zip", "--pack", "b.zip"], "--pack and --import exclude each other"),
        (["--refit", "b.json", "--target", "cpu-avx2"], "--refit takes no --target"),
        (["--pack", "b.zip"], "which target?"),
        ([], "which target?"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(app, ["profile", *arguments])
    assert isinstance(found.exception, UsageError)
    assert message in str(found.exception)


@pytest.mark.parametrize("verb", ["run", "search", "select"])
def test_foreign_tables_are_used_only_when_asked_for(verb: str) -> None:
    assert "--foreign-tables" in CliRunner().invoke(app, [verb, "--help"], terminal_width=200).output
    data = {"train": "a.csv"}
    recipe = Recipe.model_validate(
        {"model": "m", "task": "text-classification", "data": data, "targets": {"t": ["8ms"]}}
    )
    assert not recipe.with_foreign_tables(False).profile.foreign_tables
    assert recipe.with_foreign_tables(True).profile.foreign_tables
    assert not recipe.profile.foreign_tables


def test_imported_tables_are_printed_and_fitted_again(packed: Packed, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    found = CliRunner().invoke(app, ["profile", "--import", str(packed.results), "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    tables = json.loads(found.stdout)["tables"]
    assert [table["deployment"] for table in tables] == list(MEASURED)
    path = Path(tables[0]["path"])
    before = LatencyTable.from_json(path.read_text(encoding="utf-8"))

    found = CliRunner().invoke(app, ["profile", "--refit", str(path), "--seed", "0"])
    assert found.exit_code == 0, found.output
    after = LatencyTable.from_json(path.read_text(encoding="utf-8"))
    assert after.raw_sha256 == before.raw_sha256
    assert after == before

    raw = path.with_name(path.name.removesuffix(".json") + ".samples.npz")
    raw.write_bytes(raw.read_bytes() + b"x")
    text = path.read_text(encoding="utf-8")
    found = CliRunner().invoke(app, ["profile", "--refit", str(path)])
    assert isinstance(found.exception, TableError)
    assert "its SHA-256 differs" in str(found.exception)
    assert path.read_text(encoding="utf-8") == text

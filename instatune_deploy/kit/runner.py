"""Measures a kit's networks on a device: ``python run.py``, next to the kit's other files. Writes ``results.zip``.

`packing.pack` copies this file into the kit as ``run.py``. It needs Python 3.10, NumPy and the runtimes that are measured, nothing
else. Stopped at any point, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import instatune_deploy
from instatune_deploy.device.machine_facts import (
    check_machine,
    lacking_cpu,
    machine_facts,
    nvidia_gpus,
    openvino_devices,
    runtime_versions,
)
from instatune_deploy.device.process import DONE_FILE, ROUNDS_FILE, keep_rounds_of, run_worker, worker_spec
from instatune_deploy.errors import ArtifactError, InstatuneError, MeasurementError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.hashing import sha256_file

#: Of the kit's manifest and of the results; `results.import_results` reads no other.
SCHEMA_VERSION = 1
MANIFEST, MANIFEST_HASH = "kit.json", "kit.sha256"
RESULTS, MACHINE = "results.json", "machine.json"
_WORK = "work"


def rounds_name(deployment: str) -> str:
    """Where in the results the rounds of a deployment are."""
    return f"rounds/{deployment}.jsonl"


def read_kit(root: Path) -> dict[str, Any]:
    """The manifest of the kit unzipped to `root`, after a look at every file of it; files are looked at once.

    Raises:
        ArtifactError: a file is missing or differs, or the kit is of another schema; names it.
    """
    try:
        manifest_hash = (root / MANIFEST_HASH).read_text(encoding="ascii").strip()
        text = (root / MANIFEST).read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{root} is not an unzipped kit: {error}") from None
    if hashlib.sha256(text).hexdigest() != manifest_hash:
        raise ArtifactError(f"{root / MANIFEST} was changed after packing: unzip the kit again")
    kit = _parsed(text, root / MANIFEST)
    verified = root / _WORK / "verified"
    if verified.is_file() and verified.read_text(encoding="ascii") == manifest_hash:
        return kit
    for name, expected in kit["sha256"].items():
        path = root / name
        try:
            if path.resolve() != root.resolve() / name:
                raise ArtifactError(f"{path} is refused: it lies outside of the kit, or is a link")
            if not path.is_file() or sha256_file(path) != expected:
                what = "is missing" if not path.is_file() else "was changed after packing or is damaged"
                raise ArtifactError(f"{path} {what}: unzip the kit again")
        except OSError as error:  # a name that is too long, say
            raise ArtifactError(f"{root}: {name!r:.100} cannot be read: {error.strerror}") from None
    verified.parent.mkdir(exist_ok=True)
    verified.write_text(manifest_hash, encoding="ascii")
    return kit


def _parsed(text: bytes, source: Path) -> dict[str, Any]:
    """What a kit's manifest says.

    Raises:
        ArtifactError: it is damaged, of another schema, or names files that it has no hash of.
    """
    try:
        kit: dict[str, Any] = json.loads(text)
        version = kit["schema_version"]
        if version != SCHEMA_VERSION:
            raise ArtifactError(f"{source}: schema {version!r:.100}, this runner reads {SCHEMA_VERSION}")
        used = {*kit["inputs"].values(), *(path for models in kit["models"].values() for path in models.values())}
        hashes: dict[str, str] = dict(kit["sha256"])
        if not all(isinstance(text, str) and "\0" not in text for text in (*hashes, *hashes.values())):
            raise ValueError("sha256: holds other things than texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{source} is damaged: {' '.join(repr(error).split()):.200}") from None
    if odd := sorted(map(str, used - hashes.keys())):
        raise ArtifactError(f"{source}: names {odd[0]!r:.100}, of which it has no hash")
    return kit


def why_not(deployment: Deployment, facts: dict[str, Any], versions: dict[str, str]) -> str | None:
    """What this machine lacks for `deployment`, or None; the runtime's version, if no package says it, goes to `versions`."""
    # Imports NumPy: a device without it is told what to install.
    try:
        from instatune_deploy.device.runtimes.base import get_runtime

        runtime = get_runtime(deployment.runtime)
    except ImportError as error:
        return f"{error.name} is not installed: pip install {error.name}" if error.name else str(error)
    module = sys.modules.get(deployment.runtime)
    versions.setdefault(deployment.runtime, str(getattr(module, "__version__", "unknown")))
    return lacking_cpu(deployment, facts) or deployment.misfit or runtime.unavailable(deployment)


def prepare(
    root: Path, kit: dict[str, Any], deployment: Deployment, facts: dict[str, Any], versions: dict[str, str]
) -> tuple[Path, dict[str, str]]:
    """The directory that the measuring process works through, and the runtime's options.

    Rounds that another machine, runtime version, set of options or kit gave are not kept.
    """
    from instatune_deploy.device.runtimes.base import get_runtime

    options = get_runtime(deployment.runtime).options(deployment)
    directory = root / _WORK / deployment.name
    key = {
        "kit": (root / MANIFEST_HASH).read_text(encoding="ascii"),
        "machine": {name: value for name, value in facts.items() if name not in ("load_1min", "memory_bytes")},
        "versions": versions,
        "options": options,
    }
    keep_rounds_of(directory, key)
    shutil.copyfile(root / kit["inputs"][deployment.name], directory / "inputs.npz")
    return directory, options


def run(root: Path, out: Path, timeout_s: float | None) -> int:
    """Measure every deployment of the kit in `root` that this machine can run, and write the results to `out`.

    Returns:
        How many deployments were measured.

    Raises:
        ArtifactError: the kit is damaged.
        TargetError: this is not a machine of the kit's target.
    """
    kit = read_kit(root)
    facts = _facts(root)
    check_machine(kit["target"], kit["device"], kit["instruction_sets"], kit["accelerator"], facts)
    versions = {**runtime_versions(), "instatune_deploy": instatune_deploy.__version__}
    deployments = [Deployment(**_tupled(data)) for data in kit["deployments"]]
    failed = {d.name: reason for d in deployments if (reason := why_not(d, facts, versions))}
    for name, reason in failed.items():
        _say(f"{name} skipped: {reason}")
    measured = {}
    usable = [deployment for deployment in deployments if deployment.name not in failed]
    for number, deployment in enumerate(usable, 1):
        directory, options = prepare(root, kit, deployment, facts, versions)
        what = f"[{number}/{len(usable)}] {deployment.name}"
        if not (directory / DONE_FILE).is_file():
            _say(
                f"{what}: {len(kit['visits'])} networks, {kit['settings']['seconds']:.1f} s of measuring at most, and loading"
            )
            try:
                models = {network: str(root / path) for network, path in kit["models"][deployment.name].items()}
                spec = worker_spec(
                    models, kit["visits"], kit["probes"], deployment, seed=kit["seed"], settings=kit["settings"]
                )
                run_worker(directory, spec, deployment, package_root=root, timeout_s=timeout_s)
            except MeasurementError as error:
                failed[deployment.name] = str(error)
                _say(f"{what}: {error}")
                continue
            _write_json(directory / DONE_FILE, {"options": options, "date": _now()})
        measured[deployment.name] = json.loads((directory / DONE_FILE).read_text(encoding="utf-8"))
        _say(f"{what}: measured")
    write_results(root, out, facts, versions, measured, failed)
    return len(measured)


def write_results(
    root: Path,
    out: Path,
    facts: dict[str, Any],
    versions: dict[str, str],
    measured: dict[str, dict[str, Any]],
    failed: dict[str, str],
) -> None:
    """Write `out`, whole or not at all: the manifest, the machine, the rounds of what was measured, a hash of each."""
    contents = {MANIFEST: (root / MANIFEST).read_bytes()}
    contents[MACHINE] = json.dumps({"machine": facts, "versions": versions}, indent=1).encode()
    for name in measured:
        contents[rounds_name(name)] = (root / _WORK / name / ROUNDS_FILE).read_bytes()
    results = {
        "schema_version": SCHEMA_VERSION,
        "measured": measured,
        "failed": failed,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    draft = out.with_name(f".{out.name}.draft")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(RESULTS, json.dumps(results, indent=1))
        for name, content in contents.items():
            archive.writestr(name, content)
    os.replace(draft, out)


def _facts(root: Path) -> dict[str, Any]:
    """This machine; its load is that before the first measurement, for later it is ours."""
    facts = machine_facts(dict.fromkeys([*nvidia_gpus(), *openvino_devices()]))
    facts = json.loads(json.dumps(facts))  # as it comes back from the file
    path = root / _WORK / MACHINE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if {**before, "load_1min": 0} == {**facts, "load_1min": 0}:
            return dict(before)
    _write_json(path, facts)
    return facts


def _tupled(deployment: dict[str, Any]) -> dict[str, Any]:
    """A deployment's fields from JSON, which has no tuples."""
    return {**deployment, "needs": tuple(deployment["needs"])}


def _write_json(path: Path, data: Any) -> None:
    path.with_suffix(".draft").write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(path.with_suffix(".draft"), path)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; exit code 0 if anything was measured, 1 if nothing was, 2 where the machine is not the target's."""
    root = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Measure this kit's networks here and write results.zip.")
    parser.add_argument("--out", type=Path, default=root / "results.zip", help="where to write; default: beside run.py")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="stop a deployment after so long; default: never"
    )
    arguments = parser.parse_args()
    try:
        measured = run(root, arguments.out, arguments.timeout)
    except InstatuneError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped; python run.py goes on from here")
        return 130
    except OSError as error:
        _say(f"error: {error.filename or 'system'}: {error.strerror or error}")
        return 1
    _say(f"{measured} deployments measured: instatune-deploy profile --import {arguments.out}")
    if not measured:
        _say("error: no deployment could be measured here; the reasons are above and in the results")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())

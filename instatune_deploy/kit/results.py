"""`import_results`: latency tables of what a kit measured on its device."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instatune_deploy.device.timing import evaluate_rounds
from instatune_deploy.errors import ArtifactError, InstatuneError, MeasurementError, UsageError
from instatune_deploy.kit.manifest import Device, Kit, Results, parse
from instatune_deploy.kit.runner import MACHINE, MANIFEST, RESULTS, rounds_name
from instatune_deploy.profiling import Report, describe_table, write_table
from instatune_deploy.stages.profile import Plan, Profiled, tabulate
from instatune_deploy.values.archives import read_archive
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.documents import parse_json
from instatune_deploy.values.latency import LatencyTable

#: Results of the longest measurement are far below this; a zip that says it holds more is none.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Found:
    """What a results zip holds, checked.

    Args:
        rounds: of each deployment that was measured, by its name, as the measuring process writes them.
    """

    kit: Kit
    plan: Plan
    device: Device
    results: Results
    rounds: dict[str, list[dict[str, Any]]]


def import_results(path: Path, out: Path, *, report: Report) -> list[LatencyTable]:
    """Make tables of what a device measured, and write them to `out`: all, or where anything does not fit none.

    Raises:
        ArtifactError: the file is damaged, of another schema, or does not fit its kit; names what.
        MeasurementError: a latency is impossible, or no deployment could be measured.
    """
    found = read_results(path)
    profiled = [_profiled(found, deployment) for deployment in found.kit.deployments if deployment.name in found.rounds]
    for name, reason in found.results.failed.items():
        report(f"{name} was not measured: {' '.join(reason.split())}")
    for one in profiled:
        write_table(out, one)
        report(describe_table(one.table))
    return [one.table for one in profiled]


def read_results(path: Path) -> Found:
    """What a device measured.

    Raises:
        ArtifactError, MeasurementError: see `import_results`.
    """
    contents = _read(path)
    results = parse(Results, contents[RESULTS], f"{path}: {RESULTS}")
    expected = {MANIFEST, MACHINE, *map(rounds_name, results.measured)}
    if set(results.sha256) != expected or set(contents) != {RESULTS, *expected}:
        odd = sorted((set(results.sha256) ^ expected) | (set(contents) ^ {RESULTS, *expected}))
        raise ArtifactError(f"{path}: missing or not expected: {', '.join(odd)}")
    for name, digest in results.sha256.items():
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise ArtifactError(f"{path}: {name} was changed after measuring: its SHA-256 differs")
    kit = parse(Kit, contents[MANIFEST], f"{path}: {MANIFEST}")
    device = parse(Device, contents[MACHINE], f"{path}: {MACHINE}")
    odd = sorted({d.name for d in kit.deployments} ^ {*results.measured, *results.failed})
    if odd or set(results.measured) & set(results.failed):
        raise ArtifactError(f"{path}: {RESULTS}: does not say of each deployment once how it went: {', '.join(odd)}")
    if not results.measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in results.failed.items())
        raise MeasurementError(f"{path}: no deployment could be measured: {reasons}")
    for deployment in kit.deployments:
        if deployment.name in results.measured and deployment.runtime not in device.versions:
            raise ArtifactError(f"{path}: {MACHINE}: versions: lacks {deployment.runtime}")
    try:
        planned = kit.plan
    except InstatuneError as error:
        raise ArtifactError(f"{path}: {MANIFEST}: {error}") from None
    rounds = {
        name: _rounds(contents[rounds_name(name)], kit.visits, f"{path}: {rounds_name(name)}")
        for name in results.measured
    }
    return Found(kit, planned, device, results, rounds)


def _profiled(found: Found, deployment: Deployment) -> Profiled:
    """The table of one deployment.

    Raises:
        MeasurementError: its latencies make none.
    """
    kit, planned, device = found.kit, found.plan, found.device
    run = found.results.measured[deployment.name]
    names = [str(network) for network in planned.networks]
    measurement = evaluate_rounds(
        names, found.rounds[deployment.name], run.options, precision=kit.settings.precision, seed=kit.seed
    )
    profiled = tabulate(
        kit.target, deployment, planned, kit.shape, measurement, device.machine, device.versions, seed=kit.seed
    )
    return replace(profiled, table=replace(profiled.table, date=run.date))


def _read(path: Path) -> dict[str, bytes]:
    """Every file in a results zip, by name; nothing is unpacked to disk.

    Raises:
        ArtifactError: it is no zip, damaged, or of another schema.
    """
    try:
        contents = read_archive(path, most_bytes=_MOST_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    if RESULTS not in contents:
        what = "it is the kit itself: run it on the device first" if MANIFEST in contents else "not a kit's results"
        raise ArtifactError(f"{path} holds no {RESULTS}: {what}")
    return contents


def _rounds(text: bytes, visits: dict[str, int], source: str) -> list[dict[str, Any]]:
    """The rounds in a file, as the measuring process writes them.

    Raises:
        ArtifactError: one is not what the kit plans; names it.
        MeasurementError: a latency is impossible.
    """
    rounds = []
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        where = f"{source}: round {number}"
        try:
            done = parse_json(line)
            numbers = [done["others"], done["stolen"], done["waited_s"]]
            found = dict.fromkeys(visits, 0)
            for name, start_s, seconds, walls_ms, cpus_ms, session in done["visits"]:
                if name not in found:
                    raise ArtifactError(f"{where}: has network {name!r}, which is not in the kit")
                found[name] += 1
                _check_latencies(walls_ms, cpus_ms, f"{where}: {name}")
                numbers += [start_s, seconds, session]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{where}: is not of the expected form: {error!r}") from None
        if not all(_is_count(value) for value in numbers):
            raise ArtifactError(f"{where}: has a time or load that is not a number from 0 up")
        wrong = next((name for name in visits if found[name] != visits[name]), None)
        if wrong is not None:
            raise ArtifactError(f"{where}: has {found[wrong]} visits to {wrong}, the kit plans {visits[wrong]}")
        rounds.append(done)
    if not rounds:
        raise ArtifactError(f"{source}: has no round")
    return rounds


def _check_latencies(walls_ms: Any, cpus_ms: Any, where: str) -> None:
    """Make sure that a visit's runs can be some: CPU times are None where they say nothing.

    Raises:
        ArtifactError: there is none, or not as many CPU times.
        MeasurementError: a latency is not a positive number.
    """
    if not walls_ms or len(walls_ms) != len(cpus_ms):
        raise ArtifactError(f"{where}: has {len(walls_ms)} latencies and {len(cpus_ms)} CPU times")
    for value in walls_ms:
        if not (_is_count(value) and value > 0):
            raise MeasurementError(f"{where}: impossible latency: {value} ms")
    if not all(value is None or _is_count(value) for value in cpus_ms):
        raise MeasurementError(f"{where}: impossible CPU time")


def _is_count(value: Any) -> bool:
    # No time or load needs an integer that no float can hold.
    return isinstance(value, (int, float)) and 0 <= value < math.inf and value <= sys.float_info.max

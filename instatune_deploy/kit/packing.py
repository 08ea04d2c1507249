"""`pack`: a zip to measure a device with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import instatune_deploy
from instatune_deploy.elastic.probing import random_model
from instatune_deploy.errors import MeasurementError, UsageError
from instatune_deploy.kit import runner
from instatune_deploy.kit.manifest import Kit
from instatune_deploy.kit.runner import MANIFEST, MANIFEST_HASH
from instatune_deploy.profiling import Prober, Report, subject, text_tokens
from instatune_deploy.stages.profile import Plan
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.target import Target, find_target
from instatune_deploy.workspace import data_directories

#: What the measuring process imports; nothing of it needs more than NumPy and a runtime.
PACKAGE_FILES = (
    "__init__.py", "errors.py", "values/__init__.py", "values/archives.py", "values/deployment.py", "values/fixed.py", "values/hashing.py",
    "device/__init__.py", "device/control_groups.py", "device/cpu_model.py", "device/labels.py", "device/linux.py",
    "device/load.py", "device/machine_facts.py",
    "device/process.py", "device/samples.py", "device/settings.py", "device/topology.py", "device/worker.py",
    "device/runtimes/__init__.py", "device/runtimes/base.py", "device/runtimes/onnxruntime.py",
    "device/runtimes/fixed.py", "device/runtimes/openvino.py", "device/runtimes/rows.py",
)  # fmt: skip
RUNTIMES = ("onnxruntime", "openvino")
_README = """\
Unzip this where it is to be measured, on a machine that is otherwise idle. Needs Python 3.10 or later and

    pip install numpy {runtimes}

Then

    python run.py

measures the latency of {networks} networks for each of {deployments} and writes results.zip. Stopped at any point, the same
command goes on from there. Take results.zip back and make latency tables of it:

    instatune-deploy profile --import results.zip
"""


def pack(
    target_name: str, model: str | None, space_name: str | None, sequence_length: int | None, settings: ProfileSection,
    path: Path, *, seed: int, report: Report,
) -> Kit:  # fmt: skip
    """Write a kit that measures every deployment of a target which needs no PyTorch; whole, or not at all.

    Args: see `profiling.profile_model`; `path` is the zip to write.

    Raises:
        UsageError: target, model or space are unknown or do not fit, or a kit can hold none of the deployments.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give the file to write, such as {path / 'kit.zip'}")
    target = find_target(target_name, data_directories("targets"))
    wanted = subject(model, space_name, Path())
    tokens = text_tokens(wanted, sequence_length, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        prober = Prober(random_model(wanted.config), wanted.space, tokens, Path(folder), report, seed=seed)
        planned = prober.plan(settings, seed=seed)
        deployments = _packable(target, prober, planned, report)
        report(
            f"packing {wanted.what}, signature {prober.shape.signature}: {len(planned.networks)} networks for "
            f"{', '.join(deployment.name for deployment in deployments)}"
        )
        draft = Path(folder) / "kit.zip"
        # Level 1: weights hardly get smaller, however long one tries.
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            kit = _fill(archive, Path(folder), prober, planned, target, deployments, seed=seed)
        os.replace(draft, path)
    return kit


def _packable(target: Target, prober: Prober, planned: Plan, report: Report) -> list[Deployment]:
    """The deployments of `target` that a kit can hold; says why not of each of the others.

    Raises:
        UsageError: there is none.
    """
    packable, left_out = [], []
    for deployment in target.deployments:
        if deployment.runtime not in RUNTIMES:
            left_out.append(f"{deployment.name} left out: a kit measures {' and '.join(RUNTIMES)} alone")
            continue
        try:
            prober.files.path(planned.probes[0], deployment)
        except MeasurementError as error:
            left_out.append(f"{deployment.name} left out: {error}")
        else:
            packable.append(deployment)
    if not packable:
        raise UsageError(f"target {target.name} has no deployment for a kit: {'; '.join(left_out)}")
    for line in left_out:
        report(line)
    return packable


def _fill(
    archive: zipfile.ZipFile, folder: Path, prober: Prober, planned: Plan, target: Target, deployments: list[Deployment],
    *, seed: int,
) -> Kit:  # fmt: skip
    """Write everything into `archive`, the manifest last."""
    hashes: dict[str, str] = {}

    def add(source: Path, name: str) -> str:
        if name not in hashes:
            archive.write(source, name)
            hashes[name] = sha256_file(source)
        return name

    package = Path(instatune_deploy.__file__).parent
    for file in PACKAGE_FILES:
        add(package / file, f"instatune_deploy/{file}")
    add(Path(runner.__file__), "run.py")
    readme = folder / "README.txt"
    readme.write_text(
        _README.format(
            runtimes=" ".join(sorted({deployment.runtime for deployment in deployments})),
            networks=len(planned.networks),
            deployments=", ".join(deployment.name for deployment in deployments),
        ),
        encoding="utf-8",
    )
    add(readme, "README.txt")
    inputs = {}
    for deployment in deployments:
        arrays: dict[str, Any] = dict(prober.inputs(deployment))
        np.savez(folder / "inputs.npz", **arrays)
        inputs[deployment.name] = add(folder / "inputs.npz", f"inputs/batch-{deployment.batch}.npz")
    models: dict[str, dict[str, str]] = {deployment.name: {} for deployment in deployments}
    for network in planned.networks:
        for deployment in deployments:
            source = prober.files.path(network, deployment)
            name = f"models/{source.parent.name}/{source.name}"
            models[deployment.name][str(network)] = add(source, name)
            if source.suffix == ".xml":
                add(source.with_suffix(".bin"), str(Path(name).with_suffix(".bin")))
        # A large model's networks take gigabytes: they are on the disk only once.
        shutil.rmtree(source.parent)
    kit = Kit(
        instatune_deploy.__version__, target.name, target.device, target.instruction_sets, target.accelerator,
        prober.shape.signature, prober.shape, prober.space.to_dict(), tuple(deployments),
        tuple(map(str, planned.probes)), tuple(map(str, planned.heldout)), planned.visits, planned.settings, seed,
        models, inputs, hashes,
    )  # fmt: skip
    text = json.dumps(asdict(kit), indent=1)
    archive.writestr(MANIFEST, text)
    archive.writestr(MANIFEST_HASH, hashlib.sha256(text.encode()).hexdigest())
    return kit

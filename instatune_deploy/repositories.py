"""An artifact laid out for a model server: a repository of Triton, OpenVINO Model Server or MLServer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from instatune_deploy.device.lowering.pool import POOL
from instatune_deploy.device.lowering.signature import Signature, Tensor, read_signature
from instatune_deploy.device.lowering.variants import parts
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import UnknownNameError, UsageError
from instatune_deploy.sentences import write_sentence_encoder
from instatune_deploy.stages.export import Artifact, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fleet import NAME_PATTERN, Fleet, is_fleet
from instatune_deploy.values.sbom import sbom
from instatune_deploy.values.serving import ServeSettings
from instatune_deploy.workspace import check_new, new_directory

#: Samples that a server may put into one call.
MAX_BATCH = 32
_TRITON_TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}


def write_repository(directory: Path, kind: str, out: Path, *, name: str, max_batch: int = MAX_BATCH) -> Path:
    """Lay the artifact in `directory`, for MLServer also a fleet, out as a model repository, after its files were checked
    against their hashes.

    Args:
        kind: ``triton``, ``ovms``, ``mlserver``, ``sentence-transformers``, or ``sbom`` for its bill of materials alone.
        out: the repository; must not exist. It appears only when it is complete.
        name: of the model in it: letters, digits, ``_``, ``-``, ``.``.
        max_batch: samples that Triton or MLServer may put into one call.

    Raises:
        ArtifactError: it is no artifact, or a file was changed.
        UsageError: `out` exists, the name will not do, or the server has nothing that runs the artifact's deployment.
        UnknownNameError: there is no such kind.
    """
    if kind not in _WRITERS:
        raise UnknownNameError("repository", kind, _WRITERS)
    check_new(out)
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"a model cannot be called {name!r}: use letters, digits, _, - and .")
    if kind == "mlserver" and is_fleet(directory):
        for member in Fleet.read(directory).members:
            open_artifact(directory / member.directory)
        with new_directory(out) as draft:
            _write_mlserver(directory, draft, name, max_batch)
        return out
    artifact = open_artifact(directory)
    with new_directory(out) as draft:
        _WRITERS[kind](artifact, draft, name, max_batch)
    return out


def _triton(artifact: Artifact, draft: Path, name: str, max_batch: int) -> None:
    """NAME/1/model.onnx, or model.xml and model.bin, and NAME/config.pbtxt (Triton's `model_config.proto`)."""
    deployment = artifact.manifest.deployment
    if deployment.runtime not in ("onnxruntime", "openvino") or deployment.device not in ("cpu", "cuda"):
        raise UsageError(f"Triton has no backend for {deployment.name}")
    file = _copy_model(artifact, draft / name / "1")
    config = triton_config(name, read_signature(file), deployment, max_batch)
    (draft / name / "config.pbtxt").write_text(config, encoding="utf-8")


def triton_config(name: str, signature: Signature, deployment: Deployment, max_batch: int) -> str:
    """The text of a `config.pbtxt`: every size is said, for Triton need not guess; -1 is a size that varies.

    The first size of every tensor is the batch, which Triton adds itself, unless it is fixed: then Triton may not batch. Nor
    may it where an answer would follow from what it is joined with.
    """
    batched = all(tensor.dims[0] == -1 for tensor in signature.inputs)
    alone = deployment.runs_rows_alone(image=any(tensor.dtype.startswith("float") for tensor in signature.inputs))
    joined, most = batched and not alone, 1 if alone else max_batch
    if deployment.runtime == "onnxruntime":
        parameters = {
            "intra_op_thread_count": str(deployment.threads), "inter_op_thread_count": "1", "execution_mode": "0"
        }  # fmt: skip
    else:
        parameters = get_runtime("openvino").options(deployment)
        del parameters["INFERENCE_PRECISION_HINT"]  # the backend knows no such parameter, only the next
        if deployment.precision == "bf16":
            parameters["HINT_BF16"] = "YES"
    kind = "KIND_CPU" if deployment.device == "cpu" else "KIND_GPU"
    lines = [f'name: "{name}"', f'backend: "{deployment.runtime}"', f"max_batch_size: {most if batched else 0}"]
    lines += [f"input {_triton_tensor(tensor, batched)}" for tensor in signature.inputs]
    lines += [f"output {_triton_tensor(tensor, batched)}" for tensor in signature.outputs]
    lines += [f"instance_group {{ count: 1 kind: {kind} }}", *(["dynamic_batching { }"] if joined else [])]
    lines += [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _triton_tensor(tensor: Tensor, batched: bool) -> str:
    dims = ", ".join(str(size) for size in tensor.dims[batched:])
    return f'{{ name: "{tensor.name}" data_type: {_TRITON_TYPES[tensor.dtype]} dims: [ {dims} ] }}'


def _ovms(artifact: Artifact, draft: Path, name: str, max_batch: int) -> None:
    """NAME/1/model.xml and model.bin, and config.json, which names paths below ``/models``, where the
    server's container has its repository."""
    deployment = artifact.manifest.deployment
    if deployment.runtime != "openvino":
        raise UsageError(f"OpenVINO Model Server runs OpenVINO, and this artifact was measured on {deployment.name}")
    _copy_model(artifact, draft / name / "1")
    options = get_runtime("openvino").options(deployment)
    model = {
        "name": name, "base_path": f"/models/{name}", "target_device": deployment.device.upper(),
        "plugin_config": options,
    }  # fmt: skip
    text = json.dumps({"model_config_list": [{"config": model}]}, indent=1)
    (draft / "config.json").write_text(text + "\n", encoding="utf-8")


def _mlserver(artifact: Artifact, draft: Path, name: str, max_batch: int) -> None:
    _write_mlserver(artifact.directory, draft, name, max_batch)


def _write_mlserver(directory: Path, draft: Path, name: str, max_batch: int) -> None:
    """NAME/artifact, NAME/model-settings.json, and settings.json; started by ``mlserver start`` where the extra `serve` is
    installed."""
    shutil.copytree(directory, draft / name / "artifact")
    settings = ServeSettings(name=name, max_batch=max_batch)
    for path, data in (
        (draft / name / "model-settings.json", settings.model("./artifact")), (draft / "settings.json", settings.server()),
    ):  # fmt: skip
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _sentence_transformers(artifact: Artifact, draft: Path, name: str, max_batch: int) -> None:
    """The directory itself is the model: an encoder of texts in fp32."""
    write_sentence_encoder(artifact.directory, draft)


def _sbom(artifact: Artifact, draft: Path, name: str, max_batch: int) -> None:
    """NAME.cdx.json: what the artifact was made of, in CycloneDX's form."""
    text = json.dumps(sbom(artifact.manifest, name), indent=1)
    (draft / f"{name}.cdx.json").write_text(text + "\n", encoding="utf-8")


def _copy_model(artifact: Artifact, folder: Path) -> Path:
    """The file of the artifact's deployment, weights beside it, under the name that servers look for."""
    source = artifact.model_file()
    folder.mkdir(parents=True)
    for part in parts(source):
        # An ONNX file knows its weights by their name, an IR has them under its own.
        shutil.copyfile(part, folder / (POOL if part.name == POOL else f"model{part.suffix}"))
    return folder / f"model{source.suffix}"


_WRITERS: dict[str, Callable[[Artifact, Path, str, int], None]] = {
    "triton": _triton, "ovms": _ovms, "mlserver": _mlserver, "sentence-transformers": _sentence_transformers,
    "sbom": _sbom,
}  # fmt: skip

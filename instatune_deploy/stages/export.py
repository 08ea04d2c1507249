"""Stage 5: a sub-network becomes a ready-to-serve directory: ONNX, OpenVINO IR, processor, config, manifest."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from instatune_deploy.data.heads.base import Head
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import runtime_versions
from instatune_deploy.device.lowering.external import check_external
from instatune_deploy.device.lowering.gate import Gate, hold
from instatune_deploy.device.lowering.onnx import OPSET, export_onnx
from instatune_deploy.device.lowering.torch import export_torch
from instatune_deploy.device.lowering.variants import IR, ONNX, lower, reads_images
from instatune_deploy.device.runtimes.base import get_runtime, run_file
from instatune_deploy.device.runtimes.fixed import filled
from instatune_deploy.errors import ArtifactError, UsageError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.front import Measured, Predicted
from instatune_deploy.values.macs import NetworkShape, count_macs, count_parameters
from instatune_deploy.values.manifest import Manifest, Parity
from instatune_deploy.values.space import Architecture
from instatune_deploy.workspace import new_directory

#: Largest absolute difference of outputs that an fp32 file may have from the torch network.
FP32_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Artifact:
    """A ready-to-serve directory and its manifest."""

    directory: Path
    manifest: Manifest

    def with_measured(self, measured: Measured) -> Artifact:
        """The same artifact after what was measured of it is in its manifest."""
        manifest = replace(self.manifest, measured=measured)
        manifest.write(self.directory)
        return Artifact(self.directory, Manifest.read(self.directory))

    @property
    def sequence_length(self) -> int | None:
        """Tokens that texts are cut to, whatever longer size is fixed; None: it does not say. Means nothing where no texts are
        read."""
        found = re.search(r"-t(?:\d+\+)?(\d+)\b", self.manifest.signature)  # of both, image and text, the text's
        return int(found[1]) if found else None

    def model_file(self, deployment: Deployment | None = None) -> Path:
        """The file that the artifact's deployment, or another one, loads."""
        deployment = deployment or self.manifest.deployment
        return self.directory / get_runtime(deployment.runtime).model_file(deployment)


def export(
    network: PreTrainedModel, architecture: Architecture, deployment: Deployment, shape: NetworkShape,
    processor: Processor, samples: dict[str, np.ndarray], calibration: Sequence[dict[str, np.ndarray]],
    directory: Path, *, target: str, metric: str, predicted: Predicted | None, gate: Gate | None = None,
    opset: int = OPSET, fixed: FixedSizes | None = None, doc_stride: int | None = None,
    made_from: Mapping[str, str] | None = None,
) -> Artifact:  # fmt: skip
    """Write the artifact of a sub-network; `directory` appears only when every file was checked.

    Args:
        network: the extracted sub-network, whose weights lie in the artifact's file from then on; `architecture`: what it is;
            `shape`: of the full network.
        deployment: what it was selected for; the artifact holds the fp32 files of ONNX Runtime and OpenVINO all the same.
        samples: real inputs by name, batch first, on which the files' outputs are compared with the network's.
        calibration: real training inputs, batches of them, from which quantisation learns how large activations are.
        directory: the artifact; replaced if it exists.
        gate: what an int8 file may lose; None: whatever it does.
        opset: ONNX operator set, see `export_onnx`.
        made_from: what the network was made from, by name, for the manifest.
        fixed: sizes that every call of the files will have; `samples` and `calibration` may have others. None: any.
        doc_stride: tokens that neighbouring windows of a context share, where questions are answered.

    Raises:
        UsageError: sizes are to be fixed in a file that cannot do with them.
        PrecisionLossError: an int8 file does not pass the gate.
        ArtifactError: a file's outputs differ from the network's by over 1e-4 in fp32, or are no numbers.
    """
    if fixed is not None:
        _check_fixable(deployment, image=processor.images is not None)
    expected = expected_outputs(network, samples, processor.head)
    example, calibration = _of_sizes(samples, [samples], fixed)[0], _of_sizes(samples, calibration, fixed)
    tensors = {name: torch.from_numpy(array) for name, array in example.items()}
    with new_directory(directory) as draft:
        network.save_pretrained(draft)
        _map_weights(network, draft / SAFE_WEIGHTS_NAME)
        processor.save(draft)
        export_onnx(network, tensors, draft / ONNX, outputs=processor.head.outputs, opset=opset, fixed=fixed)
        files = file_deployments(deployment)
        for how in files.values():
            write_file(network, tensors, draft, how, calibration)
        kept: tuple[str, ...] = ()
        if gate is not None and deployment.precision == "int8":
            kept = hold(draft, deployment, calibration, gate, image=reads_images(tensors)).names
        parity = {
            file: check_parity(draft / file, how, samples, expected, processor.head) for file, how in files.items()
        }
        manifest = Manifest(
            architecture=str(architecture), task=processor.task, metric=metric, target=target,
            deployment=deployment, signature=shape.signature,
            macs=count_macs(shape, architecture), parameters=count_parameters(shape, architecture),
            parity=parity, predicted=predicted, measured=None, versions=runtime_versions(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), files={},
            kept_fp32=kept, opset=opset, fixed=fixed, doc_stride=doc_stride, made_from=dict(made_from or {}),
        )  # fmt: skip
        manifest.write(draft)
    return Artifact(directory, Manifest.read(directory))


def _map_weights(network: PreTrainedModel, path: Path) -> None:
    """Let the weights of a network be those in the file that it was saved to, as far as they are there: mapped, they take no
    memory that the system cannot take back. Tracing holds them until the artifact is written."""
    if path.is_file():  # the largest networks are saved to several
        network.load_state_dict(load_file(path), strict=False, assign=True)
        network.tie_weights()


def _check_fixable(deployment: Deployment, *, image: bool) -> None:
    """Make sure that a deployment's file can do with fixed sizes.

    Raises:
        UsageError: it cannot.
    """
    if deployment.runtime == "torch":
        raise UsageError(f"{deployment.name}: sizes can be fixed in files of ONNX Runtime and OpenVINO only")
    if image and (deployment.runtime, deployment.precision) == ("onnxruntime", "int8"):
        # It joins products with additions where it knows all sizes, and computes what it has joined in fp32: 3.3 times slower.
        raise UsageError(
            f"{deployment.name}: ONNX Runtime computes in int8 only where the batch of images is not fixed"
        )


def _of_sizes(
    samples: dict[str, np.ndarray], batches: Sequence[dict[str, np.ndarray]], fixed: FixedSizes | None
) -> Sequence[dict[str, np.ndarray]]:
    """`batches`, inputs as those of `samples`, as a file of fixed sizes takes them."""
    if fixed is None:
        return batches
    is_text = {name: array.ndim == 2 and array.dtype.kind == "i" for name, array in samples.items()}
    return [part for batch in batches for part in filled(batch, is_text, fixed)]


def file_deployments(own: Deployment) -> dict[str, Deployment]:
    """The model files of an artifact made for `own`, each with a deployment that loads it: the fp32 ones, and its own."""
    files = {ONNX: Deployment("onnxruntime"), IR: Deployment("openvino")}
    files.setdefault(get_runtime(own.runtime).model_file(own), own)
    return files


def write_file(
    network: PreTrainedModel, tensors: dict[str, torch.Tensor], folder: Path, deployment: Deployment,
    calibration: Sequence[dict[str, np.ndarray]],
) -> Path:  # fmt: skip
    """The file of a network that a deployment loads, made from the ``model.onnx`` in `folder` unless it is torch's.

    Args:
        tensors: inputs by name, batch first, to trace torch's file with.
        calibration: real training inputs, batches of them, from which quantisation learns how large activations are.

    Raises:
        ArtifactError: the network cannot be converted or quantised.
    """
    path = folder / get_runtime(deployment.runtime).model_file(deployment)
    if deployment.runtime == "torch":
        export_torch(network, tensors, path, precision=deployment.precision)
        return path
    return lower(folder, path.name, calibration, image=reads_images(tensors))


def expected_outputs(network: PreTrainedModel, samples: dict[str, np.ndarray], head: Head) -> list[np.ndarray]:
    """What a torch network puts out for `samples`, in the order of an exported file; the network is in evaluation mode
    afterwards."""
    network.eval()
    with torch.inference_mode():
        output = network(**{name: torch.from_numpy(array) for name, array in samples.items()})
    return [output[name].numpy() for name in head.outputs]


def check_parity(
    path: Path, deployment: Deployment, samples: dict[str, np.ndarray], expected: Sequence[np.ndarray], head: Head
) -> Parity:
    """What a file's outputs for `samples` are off by from those of the torch network, `expected`.

    Raises:
        ArtifactError: by over 1e-4 in fp32, or they are no numbers.
    """
    found = run_file(path, deployment, samples)
    # What is said of padding counts for nothing.
    kept = slice(None) if head.traces is None else samples["attention_mask"] == 1
    # NumPy's maximum of anything and no number is no number, unlike Python's.
    error = float(np.max([np.abs(ours - own)[kept].max() for ours, own in zip(found, expected, strict=True)]))
    if not np.isfinite(error):
        raise ArtifactError(f"{path.name}: its outputs are no finite numbers")
    # What fewer bits cost is measured as accuracy when the file is confirmed.
    if deployment.precision == "fp32" and error > FP32_TOLERANCE:
        raise ArtifactError(
            f"{path.name}: its fp32 outputs differ from the network's by {error:.2g}, over {FP32_TOLERANCE:g}"
        )
    decided, wanted = head.decisions(found, samples), head.decisions(expected, samples)
    agreement = None if decided is None or wanted is None else float((decided == wanted).mean())
    return Parity(error, agreement, len(expected[0]))


def open_artifact(directory: Path) -> Artifact:
    """The artifact in `directory`, its files checked against their hashes.

    Raises:
        ArtifactError: it is not one, a file was changed, or an ONNX file has weights outside of it.
    """
    manifest = Manifest.read(directory)
    manifest.verify(directory)
    for name in manifest.files:
        if name.endswith(".onnx"):
            path = directory / name
            check_external(path, {file.name for file in path.parent.iterdir()})
    return Artifact(directory, manifest)

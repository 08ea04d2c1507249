"""The encoder of an artifact as Sentence Transformers loads it: token embeddings by ONNX Runtime or OpenVINO, then their mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import LARGE_INTEGER

from instatune_deploy.data.processor import Processor
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.lowering.variants import IR, ONNX
from instatune_deploy.device.runtimes.base import run_file
from instatune_deploy.elastic.families import axis_map
from instatune_deploy.elastic.probing import longest_text, synthetic_inputs
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.errors import ArtifactError, UsageError
from instatune_deploy.values.deployment import Deployment

OUTPUT = "last_hidden_state"
#: Largest absolute difference of token embeddings that a file may have from the torch encoder.
TOLERANCE = 1e-4
#: What Sentence Transformers does with a text, in this order.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def write_sentence_encoder(directory: Path, out: Path) -> None:
    """Write the network in `directory`, without its head, to `out`: ``onnx/model.onnx``, ``openvino/openvino_model.xml``, and
    what `SentenceTransformer(out, backend=...)` wants beside them.

    The files are fp32. Sentence embeddings are means over the tokens; texts are cut where the model cannot read on.

    Args:
        directory: an artifact, or another saved sub-network with its tokenizer; `out`: there, and empty.

    Raises:
        UsageError: the network reads images.
        CheckpointError: its weights or its tokenizer are missing or damaged.
        ArtifactError: it cannot be exported, or a file's token embeddings differ from its own by over 1e-4.
    """
    encoder: PreTrainedModel = load_subnetwork(directory).base_model  # type: ignore[assignment]
    config = encoder.config
    if axis_map(config.model_type).inputs != "text":
        raise UsageError(f"{directory} reads images: Sentence Transformers takes encoders of texts")
    encoder.pooler = None  # type: ignore[assignment]  # it is made for a head
    tokenizer = Processor(str(directory), "text-classification", 1).inner
    tokens = min(tokenizer.model_max_length, longest_text(config) or tokenizer.model_max_length)
    samples = synthetic_inputs(config, min(tokens, 32), 4, seed=0)
    tensors = {name: torch.from_numpy(array) for name, array in samples.items()}
    onnx_file, ir_file = out / "onnx" / ONNX, out / "openvino" / IR
    export_onnx(encoder, tensors, onnx_file, outputs=(OUTPUT,))
    to_openvino(onnx_file, ir_file)
    with torch.inference_mode():
        expected = encoder(**tensors)[OUTPUT].numpy()
    for path, deployment in ((onnx_file, Deployment("onnxruntime")), (ir_file, Deployment("openvino"))):
        _check(path, deployment, samples, expected)
    config.architectures = [type(encoder).__name__]
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    limit = int(tokens) if tokens < LARGE_INTEGER else None  # relative positions have none
    pooling = {"word_embedding_dimension": int(config.hidden_size), "pooling_mode_mean_tokens": True}
    for name, content in (
        ("modules.json", _MODULES),
        ("sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False}),
        ("config_sentence_transformers.json", {"__version__": {}, "prompts": {}, "similarity_fn_name": "cosine"}),
        ("1_Pooling/config.json", {**pooling, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}),
    ):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check(path: Path, deployment: Deployment, samples: dict[str, np.ndarray], expected: np.ndarray) -> None:
    """Hold a file's token embeddings against the torch encoder's.

    Raises:
        ArtifactError: they differ.
    """
    error = float(np.abs(run_file(path, deployment, samples)[0] - expected).max())
    if not error <= TOLERANCE:
        raise ArtifactError(
            f"{path.name}: token embeddings differ from the encoder's by {error:.2g}, over {TOLERANCE:g}"
        )

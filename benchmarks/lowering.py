"""Claim: opset 23, unfused, is as fast as any other way to lower a network, and fixed sizes are faster in OpenVINO.

``python -m benchmarks.lowering`` exports MiniLM-L6, a sub-network of it and one of a small ViT whose layers differ in heads, at
several opsets, with any sizes and with fixed ones, plain and with ONNX Runtime's fusions, and measures all files of a
deployment in the same rounds. Writes results/lowering.json: every latency also as a ratio to that of the default's file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from transformers import PreTrainedModel, ViTConfig

from benchmarks.results import write_result
from instatune_deploy.device.lowering.onnx import OPSET, export_onnx, quiet
from instatune_deploy.device.lowering.variants import ONNX, lower
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import measure
from instatune_deploy.elastic.pretrained import load_config
from instatune_deploy.elastic.probing import probing_supernet, random_model, synthetic_inputs
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.space import Architecture, SearchSpace

OPSETS, TOKENS, SEED = (17, 18, 20, 23), 128, 0
#: Width of a head in all of these networks.
HEAD = 32
#: What ONNX Runtime's fused files are measured in, and what plain ones are.
FUSED = [Deployment("onnxruntime")]
PLAIN = [
    *FUSED, Deployment("onnxruntime", "int8"), Deployment("openvino"), Deployment("openvino", "bf16"),
    Deployment("openvino", "int8"),
]  # fmt: skip
DEFAULT = f"opset {OPSET}, plain, any sizes"
Row = dict[str, Any]


def subjects() -> Iterator[tuple[str, PreTrainedModel]]:
    """Networks to lower, by the names of their figures."""
    bert = random_model(load_config("benchmarks/models/minilm-l6"))
    yield "minilm", bert
    yield "minilm_sub", _cut(bert, [256, 512, 768, 1024, 1536], "6L[12-1536 8-1024 6-768 10-1024 4-512 6-256]")
    vit = random_model(
        ViTConfig(
            image_size=32, patch_size=4, hidden_size=192, num_hidden_layers=9, num_attention_heads=6, intermediate_size=768,
        )
    )  # fmt: skip
    yield "vit_sub", _cut(vit, [192, 384, 576, 768], "7L[6-768 4-576 3-384 5-576 2-384 4-192 6-384]")


def _cut(model: PreTrainedModel, ffn: list[int], architecture: str) -> PreTrainedModel:
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    space = SearchSpace.homogeneous(layers, range(1, layers + 1), range(1, heads + 1), ffn)
    return probing_supernet(model, space).extract(Architecture.parse(architecture))


def lowered(model: PreTrainedModel, folder: Path, opsets: Sequence[int]) -> tuple[dict[str, Path], list[Row]]:
    """The folder of each way to lower a network, by its name, and what each export took."""
    folders, rows = {}, []
    calibration = [synthetic_inputs(model.config, TOKENS, 1, seed=seed) for seed in range(4)]
    image = "pixel_values" in calibration[0]
    for opset in opsets:
        for sizes in ("any", "fixed"):
            fixed = None if sizes == "any" else FixedSizes(1, None if image else TOKENS)
            name = f"opset {opset}, plain, {sizes} sizes"
            folders[name] = folder / f"{opset}-{sizes}"
            example = {key: torch.from_numpy(array) for key, array in calibration[0].items()}
            began = time.perf_counter()
            export_onnx(model, example, folders[name] / ONNX, opset=opset, fixed=fixed)
            took = {"onnx_s": time.perf_counter() - began}
            for how in PLAIN[1:]:
                began = time.perf_counter()
                lower(folders[name], get_runtime(how.runtime).model_file(how), calibration, image=image, fast=True)
                took[f"{how.arithmetic}_s"] = time.perf_counter() - began
            rows.append({"what": "export", "way": name, "opset": opset, "sizes": sizes, **took})
            for graph, write in (("fused", fuse), ("MultiHeadAttention", fuse_attention)):
                fused = folder / f"{opset}-{sizes}-{graph}"
                fused.mkdir()
                if write(folders[name] / ONNX, fused / ONNX):
                    folders[f"opset {opset}, {graph}, {sizes} sizes"] = fused
    return folders, rows


def fuse(source: Path, destination: Path) -> bool:
    """ONNX Runtime's own fusions for transformers, which find out the heads of each layer; whether they changed anything."""
    from onnxruntime.transformers.optimizer import optimize_model

    with quiet():
        model = optimize_model(str(source), "bert", num_heads=0, hidden_size=0, opt_level=0)
        model.save_model_to_file(str(destination))
    return any(node.domain == "com.microsoft" for node in model.model.graph.node)


def fuse_attention(source: Path, destination: Path) -> bool:
    """ONNX Runtime's fused attention in the place of ONNX's and the transpositions around it, which its fusions above do not
    find in what the dynamo exporter writes; whether there was any."""
    model = onnx.load(source)
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    used_by = {name: node for node in graph.node for name in node.input}
    weights = {weight.name: weight for weight in graph.initializer}
    found = [node for node in graph.node if node.op_type == "Attention"]
    for node in found:
        # Reshape and Transpose stand between a projection and attention, and between attention and what follows.
        projected = [made_by[made_by[name].input[0]].input[0] for name in node.input[:3]]
        width = next(weights[name].dims[-1] for name in _upwards(made_by[projected[0]], made_by) if name in weights)
        merged = used_by[used_by[node.output[0]].output[0]]
        masks = ["", "", *node.input[3:4]] if len(node.input) > 3 else []
        fused = helper.make_node(
            "MultiHeadAttention", [*projected, *masks], merged.output, domain="com.microsoft", num_heads=width // HEAD
        )  # fmt: skip
        for old in (used_by[node.output[0]], merged):
            graph.node.remove(old)
        place = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(place, fused)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, destination)
    return bool(found)


def _upwards(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """Inputs of a projection's Add and MatMul, or of its Gemm."""
    yield from node.input
    for name in node.input:
        if name in made_by:
            yield from made_by[name].input


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring a file at most")
    parser.add_argument("--opsets", nargs="+", type=int, choices=OPSETS, default=OPSETS, help="23 is always measured")
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    report, rows, figures = progress(), list[Row](), dict[str, float]()
    for subject, model in subjects():
        with TemporaryDirectory() as name:
            report(f"lowering {subject}")
            folders, exports = lowered(model, Path(name), sorted({*wanted.opsets, OPSET}))
            rows += [{"subject": subject, "seed": SEED, "split": "none", "n": 1, **row} for row in exports]
            inputs = synthetic_inputs(model.config, TOKENS, 1, seed=SEED)
            for how in PLAIN:
                files = {
                    way: folder / get_runtime(how.runtime).model_file(how)
                    for way, folder in folders.items() if how in FUSED or "plain" in way
                }  # fmt: skip
                report(f"{subject}, {how.name}: {len(files)} files")
                settings = TimingSettings(seconds=wanted.seconds * len(files), wait_s=5.0)
                found = measure(files, inputs, how, seed=SEED, settings=settings).samples
                for way, sample in found.items():
                    ratio = sample.label_ms / found[DEFAULT].label_ms
                    rows.append({
                        "subject": subject, "what": "latency", "deployment": how.name, "way": way, "ratio": ratio,
                        "label_ms": sample.label_ms, "p50_ms": sample.p50_ms, "interval_pct": sample.interval_pct,
                        "n": sample.n, "seed": SEED, "split": "none",
                    })  # fmt: skip
                    opset, graph, sizes = way.removeprefix("opset ").removesuffix(" sizes").split(", ")
                    figures[f"{subject}.{how.name}.{opset}.{graph}.{sizes}"] = ratio
    for opset in {row["opset"] for row in rows if row["what"] == "export"}:
        seconds = [row["onnx_s"] for row in rows if row["what"] == "export" and row["opset"] == opset]
        figures[f"export_s.{opset}"] = float(np.median(seconds))
    claim = (
        "On one thread, opset 23 with its own Attention is as fast as opsets 17 to 20 and as ONNX Runtime's fused files within "
        "5%, and files of fixed sizes are faster in OpenVINO: as ratios to the default's latency."
    )
    print(write_result("lowering", claim, figures, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

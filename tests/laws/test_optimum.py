"""The laws of artifacts at Hugging Face's: for every family, Optimum's models and pipelines answer as the network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, ViTImageProcessor, pipeline

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.elastic.supernet import Supernet
from tests.helpers import make_family, write_text_model

ort = pytest.importorskip("optimum.onnxruntime", reason="needs the extra optimum")
intel = pytest.importorskip("optimum.intel", reason="needs the extra optimum")

TEXTS = ["a very good film", "bad"]
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), np.uint8)) for seed in (0, 1)]


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "deberta-v2", "vit", "deit", "beit"])
@torch.inference_mode()
def test_optimum_and_its_pipelines_answer_as_the_subnetwork(name: str, tmp_path: Path) -> None:
    family = make_family(name)
    network = Supernet(family.model, family.space).extract(family.space.sample(5, seed=3)[-1])
    if reads_images := "pixel_values" in family.inputs:
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
        task, kind, samples = "image-classification", "ImageClassification", IMAGES
    else:
        AutoTokenizer.from_pretrained(write_text_model(tmp_path / "tokenizer")).save_pretrained(tmp_path)
        task, kind, samples = "text-classification", "SequenceClassification", TEXTS
    network.save_pretrained(tmp_path)
    export_onnx(network, family.inputs, tmp_path / "model.onnx")
    to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    processor: Any = (AutoImageProcessor if reads_images else AutoTokenizer).from_pretrained(tmp_path)
    expected = network(**family.inputs).logits
    for model in (
        getattr(ort, f"ORTModelFor{kind}").from_pretrained(tmp_path),
        getattr(intel, f"OVModelFor{kind}").from_pretrained(tmp_path, ov_config={"INFERENCE_PRECISION_HINT": "f32"}),
    ):
        assert (model(**family.inputs).logits - expected).abs().max() <= 1e-4
        part = {"image_processor": processor} if reads_images else {"tokenizer": processor}
        answers = pipeline(task, model=model, **part)(samples, top_k=3)
        for sample, answer in zip(samples, answers, strict=True):
            inputs = processor(sample, return_tensors="pt")
            # A network that reads fewer kinds of inputs than the tokenizer makes is not given them.
            read = {key: value for key, value in inputs.items() if key in family.inputs}
            scores = network(**read).logits[0].softmax(-1)
            assert {a["label"]: a["score"] for a in answer} == pytest.approx(
                {network.config.id2label[index]: float(score) for index, score in enumerate(scores)}, abs=1e-4
            )

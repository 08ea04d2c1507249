"""Bytes in closed form, against files and against what must hold of any estimate."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.sizes import file_bytes, memory_bytes
from instatune_deploy.values.space import Architecture, SearchSpace

#: MiniLM-L6 on SST-2: embeddings, pooler and a head of two classes are outside the layers.
MINILM = ModelShape("bert", 384, 32, 6, 12, 1536, 128, fixed_macs=0, fixed_parameters=12_067_202)
SPACE = SearchSpace.homogeneous(6, [3, 4, 5, 6], [6, 8, 12], [512, 1024, 1536])
DEPLOYMENTS = [
    Deployment("onnxruntime"), Deployment("onnxruntime", "int8"), Deployment("openvino"), Deployment("openvino", "bf16"),
    Deployment("openvino", "int8"), Deployment("onnxruntime", "fp16", device="cuda"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "deployment", "found"),
    [
        ("6L[12-1536 12-1536 12-1536 12-1536 12-1536 12-1536]", Deployment("onnxruntime"), 91_296_658),
        ("6L[12-1536 12-1536 12-1536 12-1536 12-1536 12-1536]", Deployment("openvino", "bf16"), 90_860_156),
        ("5L[6-512 6-1024 12-1024 6-512 8-512]", Deployment("openvino"), 66_829_212),
    ],
)
def test_files_are_as_large_as_estimated(architecture: str, deployment: Deployment, found: int) -> None:
    assert file_bytes(MINILM, Architecture.parse(architecture), deployment) == pytest.approx(found, rel=0.01)


@given(st.integers(0, 10**6), st.sampled_from(DEPLOYMENTS))
def test_more_is_never_smaller(seed: int, deployment: Deployment) -> None:
    rng = random.Random(seed)
    smaller, other = (SPACE.encode(SPACE.sample_one(rng)) for _ in range(2))
    larger = SPACE.decode([max(pair) for pair in zip(smaller, other, strict=True)])
    for count in (file_bytes, memory_bytes):
        assert count(MINILM, SPACE.decode(smaller), deployment) <= count(MINILM, larger, deployment)


def test_memory_is_weights_and_the_largest_activations() -> None:
    network, plain = Architecture.uniform(2, 12, 1536), Deployment("openvino")
    attention = 128 * (2 * 384 + 3 * 12 * 32) + 12 * 128**2
    neurons = 128 * (2 * 384 + 1536)
    assert memory_bytes(MINILM, network, plain) - file_bytes(MINILM, network, plain) == 4 * max(attention, neurons)
    four = replace(plain, batch=4)
    assert memory_bytes(MINILM, network, four) - file_bytes(MINILM, network, four) == 16 * max(attention, neurons)
    half = memory_bytes(MINILM, network, Deployment("openvino", "bf16"))
    assert half == pytest.approx(memory_bytes(MINILM, network, plain) / 2)

"""Weights of several files in one: each where it is said to be, and none twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.device.lowering.pool import POOL, WeightPool, pool_onnx, pool_openvino
from instatune_deploy.errors import ArtifactError

#: Seeds of weights, and how much of each there is: few seeds, so that many weights begin alike.
WEIGHTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 4, 64, 100, 4095, 4096, 9000])), max_size=12)


def weight_of(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(9000)[:size]


@given(WEIGHTS)
def test_every_weight_lies_where_it_is_said_to(drawn: list[tuple[int, int]]) -> None:
    weights = [weight_of(*pair) for pair in drawn]
    with tempfile.TemporaryFile() as stream:
        pool = WeightPool(stream)
        places = [pool.place(weight) for weight in weights]
        stream.seek(0)
        content = stream.read()
    for weight, offset in zip(weights, places, strict=True):
        assert content[offset : offset + len(weight)] == weight
        assert len(weight) < 4096 or offset % 4096 == 0
    assert all(places[i] == places[weights.index(weight)] for i, weight in enumerate(weights))


@given(WEIGHTS)
def test_the_largest_first_stores_a_beginning_never_again(drawn: list[tuple[int, int]]) -> None:
    weights = sorted((weight_of(*pair) for pair in drawn if pair[1] >= 64), key=len, reverse=True)
    with tempfile.TemporaryFile() as stream:
        pool = WeightPool(stream)
        places = {pool.place(weight) for weight in weights}
    assert len(places) == len({weight[:64] for weight in weights})


def write_product(path: Path, rows: int, location: str | None = None) -> np.ndarray:
    """An ONNX file that multiplies by the first rows of a matrix, which it returns."""
    matrix = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)[:rows]
    weight = onnx.numpy_helper.from_array(matrix, "w")
    if location:
        onnx.external_data_helper.set_external_data(weight, location)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", rows])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 32])],
        [weight],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return matrix


def test_files_of_leading_rows_share_them(tmp_path: Path) -> None:
    with (tmp_path / POOL).open("w+b") as stream:
        pool = WeightPool(stream)
        for rows in (64, 48):
            write_product(tmp_path / f"{rows}.onnx", rows)
            pool_onnx(tmp_path / f"{rows}.onnx", tmp_path / f"{rows}-pooled.onnx", pool)
    assert (tmp_path / POOL).stat().st_size == 64 * 32 * 4
    for rows in (64, 48):
        assert (tmp_path / f"{rows}-pooled.onnx").stat().st_size < 500
        x = np.ones((2, rows), np.float32)
        found = [
            onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
            for name in (f"{rows}.onnx", f"{rows}-pooled.onnx")
        ]
        assert np.array_equal(*found)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    pool = WeightPool((tmp_path / POOL).open("w+b"))
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ArtifactError, match=r"cannot read .*bad\.onnx"):
        pool_onnx(tmp_path / "bad.onnx", tmp_path / "out.onnx", pool)
    write_product(tmp_path / "else.onnx", 64, "other.data")
    with pytest.raises(ArtifactError, match=r"weight w lies in other\.data"):
        pool_onnx(tmp_path / "else.onnx", tmp_path / "out.onnx", pool)
    (tmp_path / "bad.xml").write_text("<net>")
    (tmp_path / "bad.bin").touch()
    with pytest.raises(ArtifactError, match=r"cannot read .*bad\.xml"):
        pool_openvino(tmp_path / "bad.xml", tmp_path / "out.xml", pool)

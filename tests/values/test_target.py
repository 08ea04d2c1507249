"""Targets: the files that ship, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from instatune_deploy.errors import TargetError, UnknownNameError
from instatune_deploy.values.target import Deployment, find_target, read_target

SHIPPED = Path(__file__).parents[2] / "targets"
GOOD = "name: t\ndescription: d\ndevice: cpu\ndeployments:\n  - {runtime: onnxruntime}\n"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_target_reads(path: Path) -> None:
    target = read_target(path)
    assert target.name == path.stem
    assert find_target(target.name, [Path("nowhere"), SHIPPED]) == find_target(str(path), []) == target


def test_a_deployment_is_named_by_what_it_is() -> None:
    assert Deployment("onnxruntime").name == "ort-fp32-1t"
    assert Deployment("openvino", "bf16", 4, 8).name == "ov-bf16-4t-b8"


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("device: cpu", "device: tpu", "device"),
        ("name: t\n", "", "name"),
        ("runtime: onnxruntime", "runtime: onnxruntim", "deployments.0.runtime"),
        ("runtime: onnxruntime", "runtime: onnxruntime, thread: 2", "deployments.0.thread"),
        ("description: d", "description: d\ncolour: red", "colour"),
        ("  - {runtime: onnxruntime}\n", "  - {runtime: onnxruntime}\n  - {runtime: onnxruntime}\n", "distinct"),
        ("deployments:\n  - {runtime: onnxruntime}\n", "deployments: []\n", "at least one"),
        ("name: t", "name: [", "expected"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD)
    assert read_target(path).deployments == (Deployment("onnxruntime"),)
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(TargetError, match=field) as caught:
        read_target(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.yaml"):
        find_target(str(tmp_path / "none.yaml"), [])


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'cpu-avx2'"):
        find_target("cpu-avx", [SHIPPED])

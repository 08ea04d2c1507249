"""Models and artifacts of others: no pickle is read, no code of theirs runs, and nothing outside of an artifact is read for it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx.external_data_helper import set_external_data
from safetensors.torch import load_file

import instatune_deploy
from instatune_deploy.elastic.models.beit3.checkpoint import convert_checkpoint
from instatune_deploy.elastic.pretrained import load_config, load_pretrained
from instatune_deploy.errors import ArtifactError, CheckpointError, InstatuneError
from instatune_deploy.fleets import write_fleet
from instatune_deploy.repositories import write_repository
from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.archives import read_archive
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.manifest import Manifest
from instatune_deploy.verifying import verify_artifact
from tests.helpers import write_text_model
from tests.stages.test_export import export_tiny


class Malicious:
    """What an unpickler that takes everything would run."""

    def __init__(self, proof: Path) -> None:
        self._command = f"touch {proof}"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


def load(directory: Path) -> object:
    return load_pretrained(str(directory), "text-classification", ("a", "b"), reset_head=False, seed=0)


def test_no_source_reads_pickles_or_runs_code_of_models() -> None:
    """The one reader of torch's old format is `convert_checkpoint`, of released BEiT-3 files, which takes tensors alone."""
    package = Path(instatune_deploy.__file__).parent
    forbidden = re.compile(
        r"\bpickle\.loads?\(|\bjoblib\b|\bdill\b|cloudpickle|allow_pickle=True|weights_only=False|trust_remote_code=True|yaml\.(load|unsafe_load|full_load)\("
        r"|extractall\(|unpack_archive\(|(?<!\.)\beval\(|(?<!\.)\bexec\(|shell=True"
    )
    readers = []
    for path in sorted(package.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(package).as_posix()
        code = "\n".join(line.partition("#")[0] for line in text.splitlines())
        found = forbidden.search(code)
        assert found is None, f"{name}: {found}"
        if "torch.load(" in code:
            readers.append(name)
            assert code.count("torch.load(") == code.count("weights_only=True")
        for call in re.findall(r"Auto\w+\.from_pretrained\([^)]*\)", code):
            assert "trust_remote_code=False" in call, f"{name}: {call}"
    assert readers == ["elastic/models/beit3/checkpoint.py"]


def test_weights_in_a_pickle_are_refused_and_never_read(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model")
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(model)
    torch.save(state, model / "pytorch_model.bin")  # harmless, but nobody can tell before it is read
    with pytest.raises(CheckpointError, match=r"pickle, which can hold code, and only safetensors are read"):
        load(model)
    proof = tmp_path / "proof"
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        load(model)
    assert not proof.exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert proof.exists()  # it would have


def test_a_malicious_checkpoint_of_beit3_is_refused(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"model": {"a": Malicious(proof)}}, tmp_path / "beit3.pth")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        convert_checkpoint(tmp_path / "beit3.pth", tmp_path / "out")
    assert not proof.exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model")
    proof = tmp_path / "proof"
    (model / "evil.py").write_text(
        f"from transformers import BertConfig\nopen({str(proof)!r}, 'w').close()\nclass C(BertConfig): pass\n"
    )
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.C"}
    (model / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    load(model)  # a family that is known is its own code
    (model / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": classes}))
    with pytest.raises(InstatuneError):
        load_config(str(model))
    assert not proof.exists()


# -- artifacts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny("text", Deployment("onnxruntime"), tmp_path_factory.mktemp("artifact")).directory


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "artifact"))


OPENERS: dict[str, Callable[[Path], object]] = {
    "verify": lambda path: verify_artifact(path, latency=False, report=lambda line: None),
    "serve": open_artifact,  # as its members are; MLServer's messages and Triton's cannot be in one process
    "fleet": lambda path: write_fleet({"a": path}, path.parent / "fleet"),
    "package": lambda path: write_repository(path, "triton", path.parent / "repository", name="a"),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", "missing", "..\\secret"])
def test_weights_outside_of_an_artifact_are_refused(artifact: Path, location: str, opener: str) -> None:
    (artifact.parent / "secret").write_bytes(b"x" * 10**6)
    path = artifact / "model.onnx"
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 100)
    set_external_data(weight, location, 0, len(weight.raw_data))
    weight.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    Manifest.read(artifact).write(artifact)  # by one who knows what the hashes are for
    with pytest.raises(ArtifactError, match="which is no file of the artifact"):
        OPENERS[opener](artifact)


def test_weights_in_a_subgraph_are_looked_at_too(artifact: Path) -> None:
    path = artifact / "model.onnx"
    model = onnx.load(path)
    inner = onnx.helper.make_graph([], "inner", [], [])
    weight = inner.initializer.add(name="w", data_type=1, dims=[1], raw_data=bytes(4))
    set_external_data(weight, "/etc/hostname")
    model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=5).g.CopyFrom(inner)
    path.write_bytes(model.SerializeToString())
    Manifest.read(artifact).write(artifact)
    with pytest.raises(ArtifactError, match="weight 'w' lies in '/etc/hostname'"):
        open_artifact(artifact)


def test_links_in_an_artifact_are_refused(artifact: Path) -> None:
    outside = artifact.parent / "model.onnx"
    (artifact / "model.onnx").rename(outside)
    (artifact / "model.onnx").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"model\.onnx: is a link"):
        open_artifact(artifact)
    (artifact / "model.onnx").unlink()
    outside.rename(artifact / "model.onnx")
    (artifact / "folder").symlink_to(artifact.parent, target_is_directory=True)
    with pytest.raises(ArtifactError, match="folder: is a link"):
        open_artifact(artifact)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_cannot_name_files_elsewhere(artifact: Path, name: str) -> None:
    path = artifact / "instatune.json"
    data = json.loads(path.read_text())
    data["files"][name] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="missing or unexpected files"):
        open_artifact(artifact)


# -- archives -------------------------------------------------------------------------------------------------------


def zipped(path: Path, name: str, content: bytes = b"x", *, mode: int = 0, kind: int = zipfile.ZIP_STORED) -> Path:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, kind
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("../evil", {}, "leads out of it"),
        ("a/../../evil", {}, "leads out of it"),
        ("/etc/evil", {}, "leads out of it"),
        ("a\\..\\evil", {}, "leads out of it"),
        ("C:evil", {}, "leads out of it"),
        ("link", {"mode": 0o120777}, "a link or a directory"),
        ("pipe", {"mode": 0o010644}, "a link or a directory"),
        ("bomb", {"content": bytes(10**7), "kind": zipfile.ZIP_DEFLATED}, "unpacks to more than"),
        ("odd", {"kind": zipfile.ZIP_LZMA}, "compressed in an unusual way"),
    ],
)
def test_archives_hold_plain_files_of_their_own(tmp_path: Path, name: str, options: dict, message: str) -> None:
    path = zipped(tmp_path / "a.zip", name, **options)
    with pytest.raises(ArtifactError, match=message):
        read_archive(path, most_bytes=10**6)


def test_an_archive_of_plain_files_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", "folder/file", b"content", mode=0o100644)
    assert read_archive(path, most_bytes=10) == {"folder/file": b"content"}
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("folder/file", b"other")
    with pytest.raises(ArtifactError, match="twice"):
        read_archive(path, most_bytes=100)

"""From a torch module to a ``.pt2`` archive of torch.export, and back.

An archive is a zip: ``models/model.json`` holds the graph, ``data/weights/`` and ``data/constants/`` raw tensors and an
index of each, ``extra/instatune.json`` the names of its inputs and its precision. Inputs are those of the module, outputs its
own in their order, in fp32 whatever the precision.

`torch.export.load` would unpickle and evaluate parts of what it finds. `export_torch` writes archives without such parts
and `read_torch` refuses those with any. A graph is a program all the same: an artifact's hashes say who wrote it.
"""

from __future__ import annotations

import copy
import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instatune_deploy.device.lowering.onnx import dynamic_axes, no_collection, plain_functions, quiet
from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.archives import check_archive

if TYPE_CHECKING:
    import torch

#: torch's name of each precision that a network can be exported in.
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

_ABOUT = "instatune.json"
_INDEXES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_GRAPH = "models/model.json"
# Example inputs are a pickle; an empty file stands for none.
_EXAMPLE_INPUTS = "data/sample_inputs/model.pt"
_MEMBERS = {*_INDEXES, _GRAPH, _EXAMPLE_INPUTS, f"extra/{_ABOUT}", "archive_format", "archive_version", "byteorder"}
_RAW_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+|\.data/(version|serialization_id)")
# Tensor operators, but for those that touch files, and arithmetic on sizes.
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!save\.|from_file\.)\w+\.\w+|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
)
# Sizes such as Mul(Integer(32), Symbol('s41', positive=True, integer=True)) are evaluated as Python: these are its words.
_SIZE_WORD = re.compile(
    r"\b(Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CleanDiv|int_oo|(positive|nonnegative|integer)=True)\b"
    r"|'[su]\d+'|\b([su]?\d+)\b|[-+*(), ]"
)


@dataclass(frozen=True)
class TorchFile:
    """An archive that was read: its program, which takes tensors by input name; those names; what it computes in."""

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    precision: str


def export_torch(model: torch.nn.Module, example: dict[str, torch.Tensor], path: Path, *, precision: str) -> None:
    """Write `model` to `path` (``.pt2``), computing in `precision`; the module itself is left as it is.

    The first axis of every input is dynamic, and the second of every integer matrix.

    Args:
        model: an fp32 module that takes the inputs of `example` by name; exported in evaluation mode.
        example: inputs by name, batch first; a batch of one is repeated, for axes of size one count as fixed.
        path: where to write; has either its old content or all of the new.
        precision: fp32, fp16 or bf16. Floating-point inputs are rounded to it inside the network.

    Raises:
        ArtifactError: the module cannot be traced with dynamic axes, or there is no such precision.
    """
    import torch

    if precision not in DTYPES:
        raise ArtifactError(f"a torch network computes in {', '.join(DTYPES)}, not in {precision}")
    example = {name: torch.cat([value, value]) if len(value) == 1 else value for name, value in example.items()}
    axes = {name: dynamic_axes(value) for name, value in example.items()}
    # A copy: rounding the module's own weights could not be undone. Tracing after rounding lets constants fit the type,
    # such as the lowest number that masks attention.
    network = _plain_outputs(copy.deepcopy(model).eval(), getattr(torch, DTYPES[precision]))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.partial.pt2")
    about = {"inputs": list(example), "precision": precision}
    try:
        with quiet(), no_collection(), plain_functions(network), torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=(axes,), strict=False)
            program.example_inputs = None
            torch.export.save(program, draft, extra_files={_ABOUT: json.dumps(about)})
        _check_archive(draft)
        os.replace(draft, path)
    except ArtifactError:
        raise
    except Exception as error:  # the exporter raises a dozen types, most of them private
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ArtifactError(f"cannot export {type(model).__name__} to {path.name}: {first}") from error
    finally:
        draft.unlink(missing_ok=True)


def _plain_outputs(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """`model` in `dtype`, as a module that takes tensors by name and gives a tuple of its outputs in fp32.

    Plain tensors need none of transformers' output classes when the archive is loaded.
    """
    import torch

    class PlainOutputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.to(dtype)

        def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
            found = self.network(**rounded)
            if isinstance(found, torch.Tensor):
                found = (found,)
            outputs = found if isinstance(found, tuple) else found.to_tuple()
            return tuple(output.float() for output in outputs)

    return PlainOutputs()


def read_torch(path: Path) -> TorchFile:
    """The archive that `export_torch` wrote to `path`, on the CPU.

    Raises:
        ArtifactError: the file is unreadable, is no such archive, or holds what would be unpickled or evaluated.
    """
    import torch

    try:
        about = _check_archive(path)
        with quiet():
            program = torch.export.load(path)
        return TorchFile(program, tuple(about["inputs"]), about["precision"])
    except ArtifactError:
        raise
    except Exception as error:  # zip, json, schema and torch have an error each
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ArtifactError(f"torch cannot load {path}: {first}") from error


def _check_archive(path: Path) -> dict[str, Any]:
    """What the archive says about itself, after a look at everything that `torch.export.load` would read.

    Raises:
        ArtifactError: it holds something that would be unpickled or evaluated.
    """
    with zipfile.ZipFile(path) as archive:
        # Torch compresses nothing: what is said to be larger than the file is a bomb.
        check_archive(archive, path, most_bytes=path.stat().st_size)
        names = archive.namelist()
        root = names[0].split("/")[0] if names else ""
        members = [name.removeprefix(f"{root}/") for name in names]
        foreign = [m for m in members if m not in _MEMBERS and not _RAW_TENSOR.fullmatch(m)]
        if foreign or len(set(members)) < len(members):
            raise ArtifactError(f"{path} is refused: it holds {foreign[0] if foreign else 'a member twice'}")
        if archive.getinfo(f"{root}/{_EXAMPLE_INPUTS}").file_size:
            raise ArtifactError(f"{path} is refused: its example inputs are a pickle")
        for index in _INDEXES:
            for name, entry in json.loads(archive.read(f"{root}/{index}"))["config"].items():
                if entry["use_pickle"] or not _RAW_TENSOR.fullmatch(f"{index.rpartition('/')[0]}/{entry['path_name']}"):
                    raise ArtifactError(f"{path} is refused: {name} is a pickle")
        for key, text in _code(json.loads(archive.read(f"{root}/{_GRAPH}"))):
            if _SIZE_WORD.sub("", text) if key == "expr_str" else not _OPERATOR.fullmatch(text):
                raise ArtifactError(f"{path} is refused: its graph holds {text[:80]!r}")
        about: dict[str, Any] = json.loads(archive.read(f"{root}/extra/{_ABOUT}"))
    return about


def _code(tree: Any) -> list[tuple[str, str]]:
    """All sizes (``expr_str``) and operators (``target``) in a graph's JSON, as (key, text)."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            found += [(key, str(node[key])) for key in ("expr_str", "target") if isinstance(node.get(key), str)]
            left += node.values()
        elif isinstance(node, list):
            left += node
    return found

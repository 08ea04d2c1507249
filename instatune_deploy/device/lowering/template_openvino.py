"""OpenVINO's IR (an XML file of layers and edges, weights beside it) as `template.Network`, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np

from instatune_deploy.device.lowering.template import Constant, Input, Network, NotUnderstoodError, Operation, Value

_TYPES = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "i16": np.int16,
    "i8": np.int8, "u64": np.uint64, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8, "boolean": np.uint8,
}  # fmt: skip
_PRECISIONS = {"f64": "FP64", "f32": "FP32", "f16": "FP16", "boolean": "BOOL"}
# What OpenVINO aligns its own buffers to.
_ALIGNMENT_BYTES = 64


def read_ir(xml_path: Path) -> Network:
    """The network in an IR.

    Raises:
        NotUnderstoodError: it has control flow, or weights of an unusual element type.
    """
    root = ElementTree.parse(xml_path).getroot()
    weights = np.fromfile(xml_path.with_suffix(".bin"), np.uint8)
    sources = {
        (edge.attrib["to-layer"], edge.attrib["to-port"]): (edge.attrib["from-layer"], edge.attrib["from-port"])
        for edge in root.iterfind("edges/edge")
    }
    inputs: list[Input] = []
    outputs: dict[str, Value] = {}
    named: dict[str, Value] = {}
    values: dict[tuple[str, str], Value] = {}
    for layer in root.iterfind("layers/layer"):
        number, kind = layer.attrib["id"], layer.attrib["type"]
        operands = tuple(values[sources[number, port.attrib["id"]]] for port in layer.iterfind("input/port"))
        ports = layer.findall("output/port")
        node: Operation | Input | Constant
        if kind == "Parameter":
            node = Input(layer.attrib["name"])
            inputs.append(node)
        elif kind == "Const":
            node = _constant(layer, weights)
        elif kind == "Result":
            outputs[layer.attrib["name"]] = operands[0]
            continue
        else:
            if {child.tag for child in layer} - {"data", "input", "output", "rt_info"}:
                raise NotUnderstoodError(f"the network has a {kind}")
            node = Operation((kind, layer.attrib["version"], _attributes(layer), len(ports)), operands, layer)
        for index, port in enumerate(ports):
            values[number, port.attrib["id"]] = Value(node, index)
            named.update((name, Value(node, index)) for name in port.get("names", "").split(",") if name)
    return Network(tuple(inputs), outputs, named)


def _attributes(layer: ElementTree.Element) -> tuple[tuple[str, str], ...]:
    data = layer.find("data")
    return () if data is None else tuple(sorted(data.attrib.items()))


def _constant(layer: ElementTree.Element, weights: np.ndarray) -> Constant:
    data = dict(_attributes(layer))
    form = data["element_type"]
    if form not in _TYPES:
        raise NotUnderstoodError(f"the network has weights of type {form}")
    start = int(data["offset"])
    shape = [int(size) for size in data["shape"].split(",") if size.strip()]
    return Constant(weights[start : start + int(data["size"])].view(_TYPES[form]).reshape(shape), form)


def write_network_ir(network: Network, like: Path, xml_path: Path) -> None:
    """Write `network` to `xml_path` and its weights beside it; inputs, outputs and notes are those of the IR `like`."""
    root = ElementTree.parse(like).getroot()
    layers = root.findall("layers/layer")
    xml_path.parent.mkdir(parents=True, exist_ok=True)
    draft = xml_path.with_name(f".{xml_path.stem}.partial.xml")
    try:
        with draft.with_suffix(".bin").open("wb") as stream:
            writer = _Writer(stream)
            parameters = (layer for layer in layers if layer.attrib["type"] == "Parameter")
            for layer, node in zip(parameters, network.inputs, strict=True):
                writer.add(layer, node, (), names=True)
            ends = {value.node for value in network.outputs.values()}
            for operation in network.operations():
                writer.add(operation.source, operation, operation.inputs, names=operation in ends)
            for layer in layers:
                if layer.attrib["type"] == "Result":
                    writer.add(layer, None, (network.outputs[layer.attrib["name"]],), names=True)
        root[:] = [child for child in root if child.tag not in ("layers", "edges")]
        root[:0] = [writer.layers, writer.edges]
        ElementTree.ElementTree(root).write(draft, encoding="utf-8", xml_declaration=True)
        # Weights first: who finds the .xml finds a complete network.
        os.replace(draft.with_suffix(".bin"), xml_path.with_suffix(".bin"))
        os.replace(draft, xml_path)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_suffix(".bin").unlink(missing_ok=True)


class _Writer:
    """Makes the elements ``layers`` and ``edges`` and writes the constants to `stream`."""

    def __init__(self, stream: BinaryIO) -> None:
        self.layers, self.edges = ElementTree.Element("layers"), ElementTree.Element("edges")
        self._stream = stream
        self._ports: dict[Value, tuple[str, str]] = {}

    def add(
        self,
        like: ElementTree.Element,
        node: Operation | Input | None,
        operands: tuple[Value | None, ...],
        *,
        names: bool,
    ) -> None:
        """Add a layer that computes `node` (None: a result) from `operands`.

        Args:
            like: the layer to copy, all but shapes, which OpenVINO infers when it reads the file.
            names: whether the layer and its values keep their names.
        """
        for operand in operands:
            if operand is not None and operand not in self._ports and isinstance(operand.node, Constant):
                self._ports[operand] = (self._add_constant(operand.node), "0")
        number = str(len(self.layers))
        name = like.attrib["name"] if names else f"{like.attrib['type']}_{number}"
        layer = ElementTree.SubElement(self.layers, "layer", {**like.attrib, "id": number, "name": name})
        for child in like:
            layer.append(child if child.tag not in ("input", "output") else _ports(child, names=names))
        for port, operand in zip(layer.iterfind("input/port"), operands, strict=True):
            source, source_port = self._ports[operand] if operand is not None else ("", "")
            ElementTree.SubElement(self.edges, "edge", {
                "from-layer": source, "from-port": source_port, "to-layer": number, "to-port": port.attrib["id"],
            })  # fmt: skip
        for index, port in enumerate(layer.iterfind("output/port")):
            if node is not None:
                self._ports[Value(node, index)] = (number, port.attrib["id"])

    def _add_constant(self, constant: Constant) -> str:
        """Add a layer for `constant`; returns its number."""
        array, form = constant.array, constant.form
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT_BYTES))
        number = str(len(self.layers))
        layer = ElementTree.SubElement(
            self.layers, "layer", {"id": number, "name": f"Constant_{number}", "type": "Const", "version": "opset1"}
        )
        shape = ", ".join(map(str, array.shape))
        place = {"offset": str(self._stream.tell()), "size": str(array.nbytes)}
        ElementTree.SubElement(layer, "data", {"element_type": form, "shape": shape, **place})
        output = ElementTree.SubElement(layer, "output")
        port = ElementTree.SubElement(output, "port", {"id": "0", "precision": _PRECISIONS.get(form, form.upper())})
        for size in array.shape:
            ElementTree.SubElement(port, "dim").text = str(size)
        self._stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return number


def _ports(like: ElementTree.Element, *, names: bool) -> ElementTree.Element:
    """Inputs or outputs of a layer, without shapes."""
    ports = ElementTree.Element(like.tag)
    for port in like:
        kept = {key: value for key, value in port.attrib.items() if names or key != "names"}
        ElementTree.SubElement(ports, "port", kept)
    return ports

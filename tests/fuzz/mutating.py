"""Valid documents, changed: what fuzzing feeds to everything that reads a file or a request of others.

A mutation is a few edits, each three whole numbers, and these are read from bytes, so that any source of bytes makes them: Hypothesis,
which shrinks them, and atheris, which is guided by the code that they reach.
"""

from __future__ import annotations

import copy
import json
import marshal
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st

#: What is done, where, and with what.
Edit: TypeAlias = tuple[int, int, int]
#: Which seed, and what is changed in it.
Mutation: TypeAlias = tuple[int, list[Edit]]

#: Values that readers of numbers, texts and structures stumble over.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, -(2**63),
    2**64, 10**400, -(10**400), "", " ", "\x00", "\ud800", "é" * 40, "a" * 5000, "1" * 5000, "0", "-1", "nan", "1e999", "null", "../../x",
    "/etc/passwd", "C:\\x", "a/b", ".", "..", "2L[1-1 1-1]", "1L[0-0]", "99999999L[1]", "3L[12-1536 8-1024]", "8ms", "50%", "latency<=1e999ms",
    "{}", "[]", "fp32", "onnxruntime", "cpu", [], {}, [[]], [None], {"": None}, [1, 2, 3], {"a": {"a": {"a": 1}}}, [[1], [2, 3]], [1e308] * 3,
    {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]},
)  # fmt: skip
#: Pieces of text that mean something to JSON, YAML, or those that read them.
TOKENS: tuple[bytes, ...] = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\\", b"\n", b"\r\n", b"\t", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"- ", b"? ",
    b"&a ", b"*a", b"<<: *a\n", b"!!python/object/apply:os.system ['false']", b"!!binary x", b"!!set {1}", b"!!timestamp 9999-99-99",
    b"!!int 0b2", b"!!float .nan", b"---\n", b"...\n", b"%YAML 9.9\n", b"# ", b"|\n", b">\n", b"1e400", b"NaN", b"-Infinity", b"0x1F", b"1:60:60",
    b"2001-02-30", b"=", b"~", b"[" * 2000, b"{\"a\":" * 2000, b"9" * 5000, b"\\ud800", b"\\u0000", b"null", b"true", b"no",
)  # fmt: skip
_STRUCTURAL = 8
_KINDS = 14
_MOST_EDITS = 4
_EDIT = struct.Struct("<BII")
#: That a mutation is read from.
MUTATION_BYTES = 2 + _EDIT.size * _MOST_EDITS


def mutations() -> st.SearchStrategy[bytes]:
    """Bytes that `edits_of` makes a mutation of; of one size, for that is drawn fastest."""
    return st.binary(min_size=MUTATION_BYTES, max_size=MUTATION_BYTES)


def edits_of(data: bytes) -> Mutation:
    """The mutation that bytes say; some are the seeds themselves."""
    data = data.ljust(2, b"\0")
    edits = [_EDIT.unpack_from(data, start) for start in range(2, len(data) - _EDIT.size + 1, _EDIT.size)]
    return data[0], [(kind % _KINDS, where, what) for kind, where, what in edits[: data[1] % (_MOST_EDITS + 1)]]


def mutated(tree: Any, edits: Sequence[Edit], dump: Callable[[Any], bytes]) -> bytes:
    """A document with changes in its structure first, then in its bytes.

    Args:
        tree: of mappings, lists, texts and numbers, or the bytes of a document that has none.
        dump: writes a tree.
    """
    if isinstance(tree, bytes):
        data = tree
    else:
        tree = marshal.loads(marshal.dumps(tree))  # a fast copy of plain values
        for kind, where, what in edits:
            if kind < _STRUCTURAL:
                tree = _in_tree(tree, kind, where, what)
        data = dump(tree)
    for kind, where, what in edits:
        if kind >= _STRUCTURAL or isinstance(tree, bytes):
            data = _in_bytes(data, kind, where, what)
    return data


def as_json(tree: Any) -> bytes:
    """A tree as JSON, which is YAML too; numbers that are none as Python writes them."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree, as what holds it and its key there."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        node = left.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            left.append(value)
    return found


def _in_tree(tree: Any, kind: int, where: int, what: int) -> Any:
    """The tree with one place set, removed, copied over, renamed, doubled or edited."""
    places = _places(tree)
    value = copy.deepcopy(VALUES[what % len(VALUES)])
    if not places:
        return value
    holder, key = places[where % len(places)]
    other, other_key = places[what % len(places)]
    old = holder[key]
    if kind in (0, 1):
        holder[key] = value
    elif kind == 2:
        del holder[key]
    elif kind == 3:
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == 4 and isinstance(holder, dict):
        holder[other_key if isinstance(other_key, str) and what % 2 else f"{key}{what % 7}"] = holder.pop(key)
    elif kind == 5 and isinstance(old, list):
        old.insert(what % (len(old) + 1), value)
    elif kind == 5 and isinstance(old, dict):
        old[str(other_key)] = value
    elif kind == 6 and isinstance(old, str):
        cut = what % (len(old) + 1)
        holder[key] = old[:cut] + str(VALUES[where % len(VALUES)])[:60] + old[cut + what % 3 :]
    elif kind == 6 and isinstance(old, (int, float)):
        holder[key] = -old if what % 3 == 0 else old * 10.0 ** (what % 7 - 3) if abs(old) < 1e300 else str(old)
    else:
        return value if where % 50 == 0 else tree
    return tree


def _in_bytes(data: bytes, kind: int, where: int, what: int) -> bytes:
    """The bytes with one piece changed, cut out, doubled or put in."""
    start = where % (len(data) + 1)
    size = what % 24
    if kind % 6 in (0, 1):
        return data[:start] + TOKENS[what % len(TOKENS)] + data[start + (size if kind % 2 else 0) :]
    if kind % 6 == 2:
        return data[:start] + data[start + size :]
    if kind % 6 == 3:
        return data[: start + size] + data[start:]
    if kind % 6 == 4:
        return data[:start] + bytes([what % 256]) + data[start + 1 :]
    other = what % (len(data) + 1)
    return data[:start] + data[other : other + size] + data[start + size :]

"""Clients that are slow, many, large or wrong, on sockets of their own: each is cut off or refused, and the others are answered."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import numpy as np
import pytest

from instatune_deploy.data.processor import Processor
from instatune_deploy.stages.export import Artifact
from tests.serving.processes import Served, export_text, reference, serving

pytestmark = pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve")

CONNECTIONS, TIMEOUT_S, LIMIT = 40, 1.0, 200_000
BODY = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good film"]}]}).encode()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_text("text-classification", tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def served(artifact: Artifact) -> Iterator[Served]:
    options = ("--max-connections", CONNECTIONS, "--request-timeout", TIMEOUT_S, "--max-request-bytes", LIMIT)
    with serving(artifact.directory, *options) as found:
        yield found


@pytest.fixture(scope="module")
def expected(artifact: Artifact) -> np.ndarray:
    inner = Processor(str(artifact.directory), "text-classification", 16).inner
    return reference(artifact, dict(inner(["good film"], return_tensors="np")))["logits"]


def connect(served: Served) -> socket.socket:
    host, port = served.http.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def head(length: int, *lines: str) -> bytes:
    return "\r\n".join(
        ["POST /v2/models/model/infer HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]
    ).encode()


def answer(client: socket.socket) -> tuple[int, str]:
    """Status and body of all that a connection says until it is closed."""
    with contextlib.suppress(ConnectionError):
        data = b""
        while part := client.recv(65536):
            data += part
    start, _, body = data.partition(b"\r\n\r\n")
    return int(start.split()[1]), body.decode()


def right(served: Served, expected: np.ndarray) -> bool:
    found = httpx.post(f"http://{served.http}/v2/models/model/infer", content=BODY, timeout=30)
    return found.status_code == 200 and np.abs(np.asarray(found.json()["outputs"][0]["data"]) - expected).max() < 1e-5


@pytest.mark.parametrize("what", ["header", "body"])
def test_a_request_that_comes_byte_by_byte_is_cut_off(served: Served, expected: np.ndarray, what: str) -> None:
    text = head(len(BODY)) + BODY
    start = 0 if what == "header" else text.index(b"\r\n\r\n") + 4
    with connect(served) as client:
        client.sendall(text[:start])
        began = time.monotonic()
        sent = start
        while not select.select([client], [], [], 0.05)[0]:
            client.sendall(text[sent : sent + 1])
            sent += 1
        assert sent < len(text)
        assert TIMEOUT_S * 0.9 < time.monotonic() - began < TIMEOUT_S + 2
        status, reason = answer(client)
    assert (status, json.loads(reason)) == (408, {"error": "the request did not come within 1 s"})
    assert right(served, expected)


def test_slow_clients_hold_nobody_up_and_go(served: Served, expected: np.ndarray) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(served)) for _ in range(CONNECTIONS - 4)]
        for number, client in enumerate(slow):
            client.sendall(b"POST /v2" if number % 2 else head(len(BODY)) + BODY[:3])
        began = time.monotonic()
        assert right(served, expected)
        assert time.monotonic() - began < TIMEOUT_S
        assert {answer(client)[0] for client in slow} == {408}


def test_connections_without_a_request_make_way(served: Served, expected: np.ndarray) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(served)) for _ in range(3 * CONNECTIONS)]
        for _ in range(5):
            assert right(served, expected)
        for client in idle[:CONNECTIONS]:  # the oldest
            assert client.recv(10) == b""
        idle[-1].sendall(head(len(BODY), "Connection: close") + BODY)
        assert answer(idle[-1])[0] == 200


def test_more_requests_than_connections_are_refused_with_a_reason(served: Served, expected: np.ndarray) -> None:
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(served)) for _ in range(CONNECTIONS)]
        for client in busy:
            client.sendall(head(len(BODY)))
        time.sleep(0.2)
        found = httpx.get(f"http://{served.http}/v2")
        assert (found.status_code, "40 connections have requests already" in found.json()["error"]) == (429, True)
        for client in busy:
            client.sendall(BODY)
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in busy)
    assert right(served, expected)


def test_a_large_body_is_refused_before_it_comes(served: Served, expected: np.ndarray) -> None:
    with connect(served) as client:
        client.sendall(head(10**15, "Expect: 100-continue"))
        status, reason = answer(client)
        assert (status, json.loads(reason)) == (413, {"error": f"the body has more than {LIMIT} bytes"})
    with connect(served) as client:
        client.sendall(b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
        while not select.select([client], [], [], 0)[0]:
            client.sendall(piece)
        assert answer(client)[0] == 413
    assert right(served, expected)


def test_a_client_that_takes_no_answer_is_cut_off(served: Served, expected: np.ndarray) -> None:
    rows = 600
    body = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [rows], "data": ["good film"] * rows}]}
    ).encode()
    before = connections_of(served)
    with connect(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def ask() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client.sendall(head(len(body)) + body)

        asking = threading.Thread(target=ask)
        asking.start()
        end = time.monotonic() + 30
        while asking.is_alive() and time.monotonic() < end:
            assert right(served, expected)
            asking.join(0.2)
        assert not asking.is_alive()
    assert connections_of(served) <= before + 1


def connections_of(served: Served) -> int:
    return len(os.listdir(f"/proc/{served.process.pid}/fd"))


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"POST\r\n\r\n", b"\x00" * 2000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000,
        b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused(served: Served, text: bytes) -> None:
    with connect(served) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(text)
        status, reason = answer(client)
    assert 400 <= status < 500
    assert json.loads(reason)["error"]


def test_many_clients_at_once_are_all_answered_rightly(served: Served, expected: np.ndarray) -> None:
    with ThreadPoolExecutor(CONNECTIONS - 4) as pool:
        assert all(pool.map(lambda number: right(served, expected), range(200)))


def test_a_flood_leaves_neither_connections_nor_threads(served: Served, expected: np.ndarray) -> None:
    before = connections_of(served)
    rng = random.Random(0)
    for _ in range(20):
        flood = [connect(served) for _ in range(60)]
        for client in flood:
            with contextlib.suppress(ConnectionError):
                client.sendall(rng.choice([b"", b"G", head(100), head(len(BODY)) + BODY, b"\x00\x00\r\n\r\n"]))
        for client in flood:
            client.close()
    assert right(served, expected)
    end = time.monotonic() + 10
    while connections_of(served) > before and time.monotonic() < end:
        time.sleep(0.1)
    assert connections_of(served) <= before


def test_grpc_has_limits_too(served: Served) -> None:
    host, port = served.grpc.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(2 * CONNECTIONS)
        ]
        open_ones = 0
        time.sleep(0.5)
        for client in clients:
            client.setblocking(False)
            try:
                open_ones += client.recv(1000) != b""
            except BlockingIOError:
                open_ones += 1
            except ConnectionError:
                pass
        assert open_ones <= CONNECTIONS
        time.sleep(TIMEOUT_S + 0.5)  # none of them has said that it speaks HTTP/2
        for client in clients:
            client.settimeout(5)
            with contextlib.suppress(ConnectionError):
                while client.recv(1000):
                    pass


def test_more_connections_than_the_system_allows_are_refused_at_once(artifact: Artifact) -> None:
    command = [sys.executable, "-m", "instatune_deploy", "serve", str(artifact.directory), "--max-connections", "1000"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 2000 && exec "$@"', "-", *command], capture_output=True, text=True, check=False
    )
    line = "error: a process may have 2000 files open here (ulimit -Hn): give --max-connections 249 or less"
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (2, line)


def test_it_listens_on_this_machine_alone_unless_it_is_told_otherwise(served: Served) -> None:
    assert all(address.startswith("127.0.0.1:") for address in (served.http, served.grpc, served.metrics))
    inodes = {
        os.readlink(f"/proc/{served.process.pid}/fd/{name}") for name in os.listdir(f"/proc/{served.process.pid}/fd")
    }
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}", encoding="ascii") as lines:
            rows = [line.split() for line in lines][1:]
        listening = [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
        assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and as gRPC has it

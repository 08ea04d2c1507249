"""Claim: a server under stress answers everything that is right rightly, refuses everything else with a reason, and does not grow.

MiniLM-L6 with an untrained head (see `benchmarks.serving`) behind ``instatune-deploy serve`` with its limits as they come, asked for
sentences of SST-2's validation split by clients of another process, on the same core. In turn: 256 clients at once, half over REST and
half over gRPC; bodies that were changed until 10,000 were no requests any more (those that still were are counted apart); bodies over the
limit, said to be so or sent in pieces; clients that send a byte every half second, beside one that does not; a flood of connections of
which most say nothing; and ``--minutes`` of all of it, but for the flood, by 16 clients. Every answer is compared with the network's own,
run in-process on that sentence alone. Writes results/serving_stress.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import METHOD, InProcess, make_artifact, resident_mb, sentences, served, together
from tests.fuzz.mutating import MUTATION_BYTES, as_json, edits_of, mutated

CLIENTS, ASKED, TEXTS, SEED = 256, 8, 300, 0
MALFORMED, SLOW, FLOOD, FLOOD_AT_ONCE, SOAKERS = 10_000, 128, 5000, 1500, 16
LIMIT = 16 * 2**20
PATH = "/v2/models/model/infer"
#: Joined and padded, sums of a row are made in another order.
TOLERANCE = 1e-4
#: Of the soak, before memory is compared: what a process allocates once.
WARM_UP_S = 60

Ask = Callable[[int], str]


class Stress:
    """A server, the network's own answers, and what was seen so far."""

    def __init__(self, directory: Path) -> None:
        inside = InProcess(directory)
        self.texts = random.Random(SEED).sample(sentences(), TEXTS)
        self.own = [inside.ask([text])[0] for text in self.texts]
        self.wrong, self.lock = 0, threading.Lock()
        self.process, addresses = served(directory)
        self.http, self.grpc = addresses["http"], addresses["grpc"]

    def judge(self, number: int, logits: Any) -> str:
        """``right`` or ``wrong``."""
        if np.abs(np.asarray(logits, np.float32) - self.own[number]).max() < TOLERANCE:
            return "right"
        with self.lock:
            self.wrong += 1
        return "wrong"

    def rest(self) -> Ask:
        """Asks for a text by its number over a connection of its own; what became of it: right, wrong, or an error's name."""
        connection = http.client.HTTPConnection(self.http, timeout=120)

        def ask(number: int) -> str:
            try:
                connection.request("POST", PATH, text_body(self.texts[number]))
                response = connection.getresponse()
                data = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                return type(error).__name__
            if response.status != 200:
                return str(response.status)
            return self.judge(number, next(one["data"] for one in data["outputs"] if one["name"] == "logits"))

        return ask

    def rpc(self) -> Ask:
        """As `rest`, over gRPC."""
        import grpc
        from tritonclient.grpc import service_pb2

        channel = grpc.insecure_channel(self.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
        call = channel.unary_unary(
            METHOD, request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )  # fmt: skip

        def ask(number: int) -> str:
            contents = {"bytes_contents": [self.texts[number].encode()]}
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": contents}
            try:
                found = call(service_pb2.ModelInferRequest(model_name="model", inputs=[tensor]), timeout=120)
            except grpc.RpcError as error:
                return str(error.code())
            return self.judge(number, next(one.contents.fp32_contents for one in found.outputs if one.name == "logits"))

        return ask

    def connect(self) -> socket.socket:
        """A bare connection to REST's port."""
        host, port = self.http.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=120)

    def sockets(self) -> int:
        """Files and sockets that the server has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def text_body(text: str) -> bytes:
    """A right request."""
    return json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}).encode()


def head(length: int | None) -> bytes:
    """The start of a request with a body of so many bytes, or of one that comes in pieces."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{size}\r\n\r\n".encode()


def status_of(client: socket.socket) -> int:
    """What a connection is answered before it is closed; 0: nothing."""
    data = b""
    with contextlib.suppress(OSError):
        while part := client.recv(65536):
            data += part
    with contextlib.suppress(ValueError, IndexError):
        if json.loads(data.partition(b"\r\n\r\n")[2])["error"]:
            return int(data.split()[1])
    return 0


def malformed_body(rng: random.Random) -> bytes:
    """A request of texts or numbers with changes; some make it none."""
    tensors = ("input_ids", "attention_mask", "token_type_ids")
    numbers = [{"name": name, "datatype": "INT64", "shape": [1, 3], "data": [[1, 1, 1]]} for name in tensors]
    seeds = [json.loads(text_body("a fine film")), {"id": "1", "inputs": numbers, "outputs": [{"name": "logits"}]}]
    number, edits = edits_of(rng.randbytes(MUTATION_BYTES))
    return mutated(seeds[number % 2], edits, as_json)


def clients(stress: Stress) -> dict[str, Any]:
    """All at once, each with a connection of its own."""
    asks = [stress.rest() if number % 2 else stress.rpc() for number in range(CLIENTS)]
    found: list[list[tuple[str, float]]] = [[] for _ in asks]
    begun = time.perf_counter()

    def run(number: int) -> None:
        rng = random.Random(number)
        for _ in range(ASKED):
            started = time.perf_counter()
            what = asks[number](rng.randrange(TEXTS))
            found[number].append((what, 1e3 * (time.perf_counter() - started)))

    together(CLIENTS, run)
    every = [one for own in found for one in own]
    return {
        "requests": len(every), "errors": sum(what not in ("right", "wrong") for what, _ in every),
        "p50_ms": statistics.median(ms for _, ms in every), "p99_ms": float(np.percentile([ms for _, ms in every], 99)),
        "requests_per_s": len(every) / (time.perf_counter() - begun),
    }  # fmt: skip


def malformed(stress: Stress, count: int) -> dict[str, Any]:
    """Bodies of which `count` were no requests; every hundredth is followed by a right one."""
    rng, statuses, reasons = random.Random(SEED), dict[int, int](), set[str]()
    connection, right, still = http.client.HTTPConnection(stress.http, timeout=120), stress.rest(), 0
    asked = []
    while sum(statuses.values()) < count:
        connection.request("POST", PATH, malformed_body(rng))
        response = connection.getresponse()
        text = response.read()
        if response.status == 200:
            still += 1
            continue
        reason = json.loads(text).get("error") if response.status < 500 else ""
        statuses[response.status if reason else 0] = statuses.get(response.status if reason else 0, 0) + 1
        reasons.add((reason or "")[:40])
        if sum(statuses.values()) % 100 == 0:
            asked.append(right(rng.randrange(TEXTS)))
    return {
        "tried": sum(statuses.values()), "answered_4xx": sum(n for status, n in statuses.items() if 400 <= status < 500),
        "still_requests": still, "kinds_of_reasons": len(reasons), "statuses": {str(s): n for s, n in statuses.items()},
        "right_ones_between": len(asked), "errors": sum(what not in ("right", "wrong") for what in asked),
    }  # fmt: skip


def oversized(stress: Stress, count: int) -> dict[str, Any]:
    """Bodies over the limit: a third says so and sends none, a third sends it, a third comes in pieces that say nothing."""
    statuses, memory = [], resident_mb(stress.process.pid)
    for number in range(count):
        with stress.connect() as client, contextlib.suppress(ConnectionError):
            if number % 3 == 0:
                client.sendall(head(10**12))
            elif number % 3 == 1:
                client.sendall(head(LIMIT + 1) + b" " * (LIMIT + 1))
            else:
                client.sendall(head(None))
                for _ in range(LIMIT // 2**16 + 1):
                    client.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
            statuses.append(status_of(client))
    grown = resident_mb(stress.process.pid) - memory
    return {"tried": count, "answered_413": statuses.count(413), "memory_grown_mb": grown}


def slow(stress: Stress, count: int) -> dict[str, Any]:
    """What a client that asks one by one waits for, alone and beside `count` that send a byte every half second."""
    ask, rng = stress.rest(), random.Random(SEED)

    def latencies(done: Callable[[int], bool]) -> tuple[list[float], int]:
        found, errors = [], 0
        while not done(len(found)):
            started = time.perf_counter()
            errors += ask(rng.randrange(TEXTS)) not in ("right", "wrong")
            found.append(1e3 * (time.perf_counter() - started))
        return found, errors

    alone, _ = latencies(lambda n: n >= 200)
    ends, statuses = [0.0] * count, [0] * count
    body = text_body("a fine film")

    def dribble(number: int) -> None:
        text = (head(len(body)) + body) * 3
        sent = 0 if number % 2 else len(head(len(body)))
        with stress.connect() as client:
            begun = time.perf_counter()
            client.sendall(text[:sent])
            client.settimeout(0.5)
            while time.perf_counter() - begun < 120:
                try:
                    client.sendall(text[sent : sent + 1])
                    sent += 1
                    if client.recv(1, socket.MSG_PEEK):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            ends[number] = time.perf_counter() - begun
            client.settimeout(30)
            statuses[number] = status_of(client)

    threads = [threading.Thread(target=dribble, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    beside, errors = latencies(lambda _: not any(thread.is_alive() for thread in threads))
    after, _ = latencies(lambda n: n >= 200)
    undisturbed = statistics.median([*alone, *after])
    return {
        "clients": count, "cut_off": statuses.count(408), "cut_off_after_s": max(ends), "errors": errors,
        "alone_p50_ms": undisturbed, "beside_p50_ms": statistics.median(beside),
        "others_delayed_ms": statistics.median(beside) - undisturbed, "requests_beside": len(beside),
    }  # fmt: skip


def flood(stress: Stress, count: int) -> dict[str, Any]:
    """`count` connections as fast as they are made, `FLOOD_AT_ONCE` open at a time, beside one client that asks."""
    rng, errors, answered, most = random.Random(SEED), 0, 0, 0
    held: list[socket.socket] = []
    body = text_body("a fine film")
    says = (b"", b"", b"", b"P", head(len(body)), head(len(body)) + body, b"\x16\x03\x01\x00\r\n\r\n")
    before, begun, done = stress.sockets(), time.perf_counter(), threading.Event()

    def ask() -> None:
        nonlocal errors, answered
        asks = random.Random(SEED)
        while not done.is_set():
            what = stress.rest()(asks.randrange(TEXTS))  # a new connection each time, as the flood's are
            answered += what in ("right", "wrong")
            errors += what not in ("right", "wrong")

    asking = threading.Thread(target=ask)
    asking.start()
    for number in range(count):
        with contextlib.suppress(OSError):
            held.append(stress.connect())
            held[-1].sendall(rng.choice(says))
        if number % 250 == 0:
            most = max(most, stress.sockets())
        if len(held) > FLOOD_AT_ONCE:
            held.pop(0).close()
    took = time.perf_counter() - begun
    done.set()
    asking.join()
    for client in held:
        client.close()
    end = time.monotonic() + 60
    while stress.sockets() > before and time.monotonic() < end:
        time.sleep(0.2)
    return {
        "connections": count, "seconds": took, "answered_beside": answered, "refused_beside": errors,
        "most_sockets": most, "sockets_left": stress.sockets() - before,
        "errors": sum(stress.rest()(number) != "right" for number in range(20)),
    }  # fmt: skip


def soak(stress: Stress, minutes: float) -> dict[str, Any]:
    """`SOAKERS` clients, over REST and gRPC, with a malformed body in 20 and a connection that is dropped in 50."""
    counts = [dict[str, int]() for _ in range(SOAKERS)]
    end = time.monotonic() + 60 * minutes

    def run(number: int) -> None:
        rng, mine = random.Random(number), counts[number]
        new = stress.rest if number % 2 else stress.rpc
        ask = new()
        connection = http.client.HTTPConnection(stress.http, timeout=120)
        while time.monotonic() < end:
            what = ask(rng.randrange(TEXTS))
            if rng.random() < 0.05:
                connection.close()  # the server does so with one that has had no request for two minutes
                connection.request("POST", PATH, malformed_body(rng))
                response = connection.getresponse()
                response.read()
                what = "refused" if response.status < 500 else "5xx"
            elif rng.random() < 0.02:
                with stress.connect() as client:
                    client.sendall(head(1000))
            if what not in ("right", "wrong", "refused"):
                print(f"soak: {what}", file=sys.stderr, flush=True)
                ask = new()
            mine[what] = mine.get(what, 0) + 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(SOAKERS)]
    for thread in threads:
        thread.start()
    memory = []
    warm_up_s = min(WARM_UP_S, 6 * minutes)
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(10.0, warm_up_s))
        memory.append(resident_mb(stress.process.pid))
    warm = memory[int(warm_up_s // 10) :] or memory
    total = {what: sum(mine.get(what, 0) for mine in counts) for what in {key for mine in counts for key in mine}}
    return {
        "minutes": minutes, "requests": sum(total.values()), "counts": total, "memory_mb": memory,
        "errors": sum(n for what, n in total.items() if what not in ("right", "wrong", "refused")),
        "memory_before_mb": warm[0], "memory_after_mb": memory[-1],
        "memory_growth_pct": 100 * (memory[-1] / warm[0] - 1), "sockets": stress.sockets(),
    }  # fmt: skip


def measure(directory: Path, minutes: float, share: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows; `share` of the counts."""
    stress = Stress(directory)
    phases: dict[str, Callable[[], dict[str, Any]]] = {
        f"clients_{CLIENTS}": lambda: clients(stress), "malformed": lambda: malformed(stress, int(MALFORMED * share)),
        "oversized": lambda: oversized(stress, max(3, int(60 * share))), "slow": lambda: slow(stress, max(2, int(SLOW * share))),
        "flood": lambda: flood(stress, int(FLOOD * share)), "soak": lambda: soak(stress, minutes),
    }  # fmt: skip
    figures: dict[str, float] = {}
    rows = []
    try:
        ask = stress.rest()
        if errors := [what for what in map(ask, range(50)) if what != "right"]:
            raise SystemExit(f"undisturbed, it answers {errors}")
        figures["memory_start_mb"] = resident_mb(stress.process.pid)
        for name, run in phases.items():
            row = run()
            print(name, json.dumps(row), file=sys.stderr, flush=True)
            rows.append({"what": name, "seed": SEED, "split": "validation", "n": TEXTS, **row})
            figures |= {f"{name}.{key}": value for key, value in row.items() if isinstance(value, (int, float))}
        if stress.process.poll() is not None:
            raise SystemExit(f"the server has ended with {stress.process.returncode}")
        figures["memory_end_mb"] = resident_mb(stress.process.pid)
    finally:
        stress.process.terminate()
        code = stress.process.wait(120)
    return {"wrong_answers": stress.wrong, "exit_code": code, **figures}, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="another artifact of texts' classes")
    parser.add_argument("--minutes", type=float, default=60, help="of the soak")
    parser.add_argument("--share", type=float, default=1, help="of the counts of the other parts, for a try")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    arguments = parser.parse_args()
    from benchmarks.results import write_result
    from instatune_deploy.faces.cli.app import quiet_libraries

    quiet_libraries()
    home = Path(tempfile.mkdtemp())
    try:
        directory = arguments.artifact or make_artifact(home / "artifact", "ort-fp32-1t")
        figures, rows = measure(directory, arguments.minutes, arguments.share)
    finally:
        shutil.rmtree(home)
    print(json.dumps(figures, indent=1))
    if not arguments.dry_run:
        claim = (
            "Under stress a server answers what is right rightly, refuses the rest with a reason, and does not grow."
        )
        print(write_result("serving_stress", claim, figures, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

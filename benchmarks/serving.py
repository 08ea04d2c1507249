"""Claim: served over the Open Inference Protocol, requests cost little more than the network, and joining them serves more.

MiniLM-L6 with a head for SST-2 (or ``--artifact DIR``), asked for the sentences of SST-2's validation split as texts, by
clients in a process of their own on the same two cores. `rest_overhead_ms` and `grpc_overhead_ms` are the median time of a
request of one client, one after the other, minus the median of the same sentence encoded and run in-process, the three in
turn. Then 64 clients ask at once for ``--seconds``, over either protocol. `batching_gain` is the higher of both throughputs by
that of single requests in-process: as many threads as cores, each encodes a sentence and runs it, one after the other.
Writes results/serving.json.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SENTENCES = Path("benchmarks/data/sst2/validation.parquet")
MODEL, TOKENS = "benchmarks/models/minilm-l6", 128
CLIENTS, ROUNDS, CORES, SEED = 64, 300, 2, 0
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def sentences() -> list[str]:
    """The split's sentences, in its order."""
    found: list[str] = pq.read_table(SENTENCES)["sentence"].to_pylist()
    return found


def make_artifact(directory: Path, deployment_name: str) -> Path:
    """The full network with an untrained head: its weights do not matter for its speed."""
    from instatune_deploy.benching import parse_deployment
    from instatune_deploy.data.processor import Processor
    from instatune_deploy.elastic.pretrained import load_pretrained
    from instatune_deploy.elastic.shapes import model_shape
    from instatune_deploy.stages.export import export

    deployment = parse_deployment(deployment_name)
    if deployment is None:
        raise SystemExit(f"there is no deployment {deployment_name}")
    network = load_pretrained(MODEL, "text-classification", ("0", "1"), reset_head=False, seed=SEED)
    processor = Processor(MODEL, "text-classification", TOKENS)
    shape = model_shape(network, TOKENS)
    batches = [
        {name: np.asarray(array) for name, array in processor.inner.pad(rows, return_tensors="np").items()}
        for rows in (processor.encode_texts(sentences()[start : start + 32]) for start in range(0, 256, 32))
    ]
    return export(
        network, shape.full(), deployment, shape, processor, batches[0], batches, directory, target="benchmark",
        metric="accuracy", predicted=None,
    ).directory  # fmt: skip


class InProcess:
    """The same inference without a server."""

    def __init__(self, directory: Path) -> None:
        from instatune_deploy.data.processor import Processor
        from instatune_deploy.device.runtimes.base import get_runtime
        from instatune_deploy.stages.export import open_artifact

        artifact = open_artifact(directory)
        self.deployment = artifact.manifest.deployment
        self._runtime, self._file = get_runtime(self.deployment.runtime), artifact.model_file()
        self._directory, self._processor = str(directory), Processor
        self.ask = self.another()

    def another(self) -> Callable[[list[str]], np.ndarray]:
        """A function that encodes sentences, runs them in one call and gives their logits; for one thread at a time."""
        session = self._runtime.load(self._file, self.deployment)
        processor = self._processor(self._directory, "text-classification", TOKENS)

        def ask(texts: list[str]) -> np.ndarray:
            arrays = processor.inner.pad(processor.encode_texts(texts), return_tensors="np")
            return session.run({name: np.asarray(array) for name, array in arrays.items()})[0]

        return ask

    def throughput(self, seconds: float, batch: int, threads: int = CORES) -> float:
        """Sentences a second of `threads`, each `batch` sentences of neighbouring lengths a call."""
        texts = sentences() if batch == 1 else sorted(sentences(), key=len)
        groups = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        rng = np.random.default_rng(SEED)
        orders = [rng.permutation(len(groups)) for _ in range(threads)]
        asks, done = [self.another() for _ in range(threads)], [0] * threads
        end = time.perf_counter() + seconds

        def run(number: int) -> None:
            while True:
                for group in orders[number]:
                    if time.perf_counter() > end:
                        return
                    asks[number](groups[group])
                    done[number] += len(groups[group])

        together(threads, run)
        return sum(done) / seconds


def together(count: int, run: Callable[[int], None]) -> None:
    """Call `run` with 0, 1, ... in as many threads, and wait for all of them."""
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rest_client(address: str) -> Callable[[str], bool]:
    """Asks for a sentence over one connection; whether it was answered."""
    connection = http.client.HTTPConnection(address, timeout=60)

    def ask(text: str) -> bool:
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
        connection.request("POST", "/v2/models/model/infer", json.dumps(body))
        response = connection.getresponse()
        return response.status == 200 and b'"logits"' in response.read()

    return ask


def grpc_client(address: str) -> Callable[[str], bool]:
    """As `rest_client`, over gRPC."""
    import grpc
    from tritonclient.grpc import service_pb2

    # Channels to one address share a connection unless they are told not to.
    call = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]).unary_unary(
        METHOD, request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )  # fmt: skip

    def ask(text: str) -> bool:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [text.encode()]}}
        try:
            return (
                len(call(service_pb2.ModelInferRequest(model_name="model", inputs=[tensor]), timeout=60).outputs) == 3
            )
        except grpc.RpcError:
            return False

    return ask


MAKERS = {"rest": rest_client, "grpc": grpc_client}


def load(kind: str, address: str, seconds: float) -> dict[str, Any]:
    """`CLIENTS` clients for `seconds`: latencies of all requests (ms), and errors."""
    texts, latencies, errors = sentences(), [list[float]() for _ in range(CLIENTS)], [0] * CLIENTS
    asks = [MAKERS[kind](address) for _ in range(CLIENTS)]
    begun = time.perf_counter()
    end = begun + seconds

    def run(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(texts))
        for place in itertools.cycle(order):
            started = time.perf_counter()
            if started > end:
                return
            try:
                answered = asks[number](texts[place])
            except (OSError, http.client.HTTPException):
                answered = False
            latencies[number].append(1e3 * (time.perf_counter() - started))
            errors[number] += not answered

    together(CLIENTS, run)
    took = time.perf_counter() - begun
    every = [value for own in latencies for value in own]
    return {
        "requests": len(every), "errors": sum(errors), "seconds": took, "clients": CLIENTS,
        "requests_per_s": len(every) / took,
        **{f"p{q}_ms": float(np.percentile(every, q)) for q in (50, 90, 99)},
    }  # fmt: skip


def resident_mb(process: int) -> float:
    """Memory of a process now."""
    line = next(row for row in Path(f"/proc/{process}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def served(directory: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A server on free ports, and its addresses."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json")
    command = [sys.executable, "-m", "instatune_deploy", "serve", str(directory), *ports, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    text = ""
    for line in process.stdout or ():
        text += line
        if line.startswith("}"):
            return process, json.loads(text)
    raise SystemExit("the server has ended")


def overhead(inside: InProcess, addresses: dict[str, str], rounds: int) -> dict[str, Any]:
    """Medians (ms) of a request of one client and of the same sentence in-process, in turn."""
    ways: dict[str, Callable[[str], Any]] = {"in_process": lambda text: inside.ask([text])}
    for kind, make in MAKERS.items():
        ways[kind] = make(addresses["http" if kind == "rest" else kind])
    texts = np.random.default_rng(SEED).permutation(sentences())
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 20):
        order = list(ways)
        for way in order[number % 3 :] + order[: number % 3]:
            started = time.perf_counter()
            ways[way](str(texts[number % len(texts)]))
            if number >= 20:  # the first ones warm up
                times[way].append(1e3 * (time.perf_counter() - started))
    found = {f"{way}_p50_ms": statistics.median(values) for way, values in times.items()}
    return {"what": "one client", "rounds": rounds, "seed": SEED, "split": "validation", **found}


def under_load(kind: str, address: str, server: int, seconds: float) -> dict[str, Any]:
    """`load` from another process, and the server's memory (MB) before, every tenth of a minute's part, and after."""
    command = [sys.executable, "-m", "benchmarks.serving", "--clients", kind, address, "--seconds", str(seconds)]
    memory = [resident_mb(server)]
    clients = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while clients.poll() is None:
        try:
            clients.wait(min(10.0, seconds / 3))
        except subprocess.TimeoutExpired:
            memory.append(resident_mb(server))
    found = json.loads(clients.stdout.read() if clients.stdout else "")
    return {"what": f"{CLIENTS} clients", "protocol": kind, **found, "server_mb": [*memory, resident_mb(server)]}


def measure(
    directory: Path, seconds: float, rounds: int, max_batch: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows."""
    inside = InProcess(directory)
    alone = [inside.throughput(seconds, 1)]
    process, addresses = served(directory, "--calls", str(CORES), "--max-batch-size", str(max_batch))
    try:
        single = overhead(inside, addresses, rounds)
        rows = [single]
        for kind in MAKERS:
            rows.append(under_load(kind, addresses["http" if kind == "rest" else kind], process.pid, seconds))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        process.terminate()
        code = process.wait(120)
    alone.append(inside.throughput(seconds, 1))  # before and after, for the machine's speed may drift
    single_s, batched = statistics.fmean(alone), inside.throughput(seconds, 32)
    one_thread = inside.throughput(seconds, 1, threads=1)
    rows.append(
        {
            "what": "in-process", "threads": CORES, "deployment": inside.deployment.name, "served_max_batch": max_batch, "sentences_per_s": alone,
            "sentences_per_s_in_batches_of_32": batched, "sentences_per_s_of_one_thread": one_thread,
            "seconds": seconds, "server_exit_code": code,
        }
    )  # fmt: skip
    loads = rows[1:3]
    best = max(row["requests_per_s"] for row in loads)
    figures = {
        "errors": sum(row["errors"] for row in loads),
        "rest_overhead_ms": single["rest_p50_ms"] - single["in_process_p50_ms"],
        "grpc_overhead_ms": single["grpc_p50_ms"] - single["in_process_p50_ms"],
        "batching_gain": best / single_s,
        "gain_over_one_thread": best / one_thread,
        # What is left of it when serving costs nothing: the most that any server can gain on these cores.
        "batching_gain_without_server": batched / single_s,
        **{f"{row['protocol']}.{key}": row[key] for row in loads for key in ("requests_per_s", "p50_ms", "p99_ms")},
        "memory_growth_mb": max(row["server_mb"][-1] - row["server_mb"][1] for row in loads),
    }
    return figures, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="another artifact of texts' classes")
    parser.add_argument("--deployment", default="ort-fp32-1t", help="of the artifact that is made")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    # A quarter of the clients: two calls run, and the next two are complete when they end.
    parser.add_argument("--max-batch-size", type=int, default=CLIENTS // (2 * CORES), help="of the server")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    parser.add_argument("--clients", nargs=2, metavar=("PROTOCOL", "ADDRESS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        print(json.dumps(load(*arguments.clients, arguments.seconds)))
        return 0
    from benchmarks.results import write_result
    from instatune_deploy.faces.cli.app import quiet_libraries

    quiet_libraries()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # the server and the clients inherit it
    home = Path(tempfile.mkdtemp())
    try:
        directory = arguments.artifact or make_artifact(home / "artifact", arguments.deployment)
        figures, rows = measure(directory, arguments.seconds, arguments.rounds, arguments.max_batch_size)
    finally:
        shutil.rmtree(home)
    print(json.dumps(figures, indent=1))
    if not arguments.dry_run:
        claim = (
            f"Of {CLIENTS} clients for {arguments.seconds:g} s no request fails, a request costs little more than its network, "
            "and joined requests are served faster than single ones run in-process."
        )
        print(write_result("serving", claim, figures, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What exporting a sub-network of a BERT-large-sized super-network takes of memory, held against the sub-network's size.

What counts is memory that cannot be given back: pages of files that are mapped can be, and are under pressure. It is read
for all processes of the export together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.supernet import Supernet, load_supernet, save_supernet
from instatune_deploy.faces.cli.app import quiet_libraries
from instatune_deploy.stages.export import export
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture, SearchSpace

TOKENIZER = Path(__file__).parent / "models" / "minilm-l6"
#: Half of the layers, of the heads and of the neurons.
ARCHITECTURE = Architecture.uniform(12, 8, 2048)
TOKENS = 128
PERIOD_S = 0.01
Row = dict[str, Any]


def measure(directory: Path) -> tuple[list[Row], dict[str, float]]:
    """Rows and figures of an export in fp32, of ONNX Runtime's and OpenVINO's files; works in `directory`."""
    supernet = directory / "supernet"
    if not supernet.is_dir():
        _make_supernet(supernet)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.export_memory", str(directory)], stdout=subprocess.PIPE, text=True
    ) as process:
        peak = Peak(process.pid)
        out, _ = process.communicate()
        peak.stop()
    if process.returncode:
        raise SystemExit(f"the export ended with {process.returncode}")
    found = json.loads(out)
    size = found["subnetwork_bytes"]
    row = {
        "what": "export", "seed": 0, "split": "none", "n": 2, "architecture": str(ARCHITECTURE), **found,
        "peak_anonymous_bytes": peak.anonymous_bytes, "peak_resident_bytes": peak.resident_bytes,
    }  # fmt: skip
    figures = {
        # At most 1.3 is asked.
        "export.peak_ratio": (peak.anonymous_bytes - 1e9) / size,
        "export.peak_mb": peak.anonymous_bytes / 1e6, "export.peak_resident_mb": peak.resident_bytes / 1e6,
        "export.subnetwork_mb": size / 1e6, "export.supernet_mb": found["supernet_bytes"] / 1e6,
    }  # fmt: skip
    return [row], figures


class Peak:
    """The most memory that a process and its children had at once, looked at every 10 ms; `stop` ends the looking."""

    def __init__(self, pid: int) -> None:
        self.anonymous_bytes = self.resident_bytes = 0
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(PERIOD_S):
            found = [_memory(pid) for pid in _family(self._pid)]
            self.anonymous_bytes = max(self.anonymous_bytes, sum(anonymous for anonymous, _ in found))
            self.resident_bytes = max(self.resident_bytes, sum(resident for _, resident in found))


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process that no file holds, and all that are in memory."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0, 0
    fields = {name: 1024 * int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if name in ("RssAnon", "RssShmem", "VmRSS")}  # fmt: skip
    return fields.get("RssAnon", 0) + fields.get("RssShmem", 0), fields.get("VmRSS", 0)


def _make_supernet(directory: Path) -> None:
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    save_supernet(Supernet(model, SearchSpace.homogeneous(24, [12, 24], [8, 16], [2048, 4096])), directory)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(directory)


def export_one(directory: Path) -> Row:
    """Export the sub-network; what it is."""
    supernet = load_supernet(directory / "supernet")
    processor = Processor(str(directory / "supernet"), "text-classification", TOKENS)
    samples = synthetic_inputs(supernet.model.config, TOKENS, 2, seed=0)
    network = supernet.extract(ARCHITECTURE)
    made = export(
        network, ARCHITECTURE, Deployment("openvino"), supernet.shape(TOKENS), processor, samples, [samples],
        directory / "artifact", target="cpu", metric="accuracy", predicted=None,
    )  # fmt: skip
    return {
        "subnetwork_bytes": 4 * made.manifest.parameters, "supernet_bytes": sum(p.nbytes for p in supernet.model.parameters()),
        "parity": {name: found.max_abs_error for name, found in made.manifest.parity.items()},
    }  # fmt: skip


if __name__ == "__main__":
    quiet_libraries()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(json.dumps(export_one(Path(sys.argv[1]))))

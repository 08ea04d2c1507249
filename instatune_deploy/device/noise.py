"""How steady this machine is: networks of known make, measured by the protocol that latency tables are measured by."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import measure
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Disturbance

#: The networks: so many of a transformer's MLP blocks of MiniLM's size. Fewer than five networks tell less: see `labels`.
BLOCKS = (2, 3, 4, 5, 6)
_WIDTH, _NEURONS, _TOKENS = 384, 1536, 128
_OPSET, _IR_VERSION = 17, 8
#: A table whose noise floor is beyond this tells few networks apart; below `QUIET_PCT` it is the tables' usual one.
QUIET_PCT, NOISY_PCT = 1.0, 3.0


@dataclass(frozen=True)
class Noise:
    """What `measure_noise` found.

    Args:
        floor_pct: mean difference between the labels of the odd and the even sessions of each network, as the noise floor
            of a latency table is (% of the label).
        spread_pct: how much slower than the median the slowest tenth of runs was (%): what p90 budgets feel.
        latency_ms: label of the largest network.
    """

    deployment: str
    networks: int
    runs: int
    seconds: float
    floor_pct: float
    spread_pct: float
    latency_ms: float
    disturbance: Disturbance

    @property
    def verdict(self) -> str:
        """``quiet``, ``usable`` or ``noisy``."""
        if self.floor_pct < QUIET_PCT:
            return "quiet"
        return "usable" if self.floor_pct < NOISY_PCT else "noisy"


def measure_noise(seconds: float, deployment: Deployment, *, seed: int = 0) -> Noise:
    """Measure how steady `deployment` is on this machine.

    Args:
        seconds: of measuring; loading comes on top.

    Raises:
        MeasurementError: measuring failed.
    """
    with tempfile.TemporaryDirectory(prefix="instatune-noise-") as directory:
        files = {f"{blocks} blocks": Path(directory) / f"{blocks}.onnx" for blocks in BLOCKS}
        for blocks, path in zip(BLOCKS, files.values(), strict=True):
            write_blocks(path, blocks, seed=seed)
        # A precision of nothing: it measures for as long as it may.
        settings = TimingSettings(seconds=seconds, precision=0.0)
        found = measure(files, block_inputs(seed=seed), deployment, seed=seed, settings=settings)
    halves = [sample.half_labels_ms for sample in found.samples.values()]
    largest = found.samples[f"{BLOCKS[-1]} blocks"]
    return Noise(
        deployment=deployment.name,
        networks=len(files),
        runs=sum(sample.n for sample in found.samples.values()),
        seconds=sum(found.seconds.values()),
        floor_pct=statistics.fmean(200 * abs(first - second) / (first + second) for first, second in halves),
        spread_pct=100 * (statistics.fmean(s.p90_ms / s.p50_ms for s in found.samples.values()) - 1),
        latency_ms=largest.label_ms,
        disturbance=found.disturbance,
    )


def block_inputs(*, seed: int = 0) -> dict[str, np.ndarray]:
    """What the networks read: ``states`` of shape (1, tokens, width)."""
    return {"states": np.random.default_rng(seed).standard_normal((1, _TOKENS, _WIDTH), dtype=np.float32)}


def write_blocks(path: Path, blocks: int, *, seed: int = 0) -> None:
    """Write an ONNX file of so many MLP blocks (matrix product, GELU by its definition, matrix product, sum) with random
    weights; both runtimes load it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    constants = {"root_half": np.float32(0.5**0.5), "one": np.float32(1.0), "half": np.float32(0.5)}
    weights += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    state = "states"
    for number in range(blocks):
        for name, shape in (("up", (_WIDTH, _NEURONS)), ("down", (_NEURONS, _WIDTH))):
            values = 0.02 * rng.standard_normal(shape, dtype=np.float32)
            weights.append(numpy_helper.from_array(values, f"{name}{number}"))
        steps = [
            ("MatMul", [state, f"up{number}"], "hidden"),
            ("Mul", ["hidden", "root_half"], "scaled"),
            ("Erf", ["scaled"], "erf"),
            ("Add", ["erf", "one"], "raised"),
            ("Mul", ["hidden", "raised"], "gated"),
            ("Mul", ["gated", "half"], "active"),
            ("MatMul", ["active", f"down{number}"], "back"),
            ("Add", ["back", state], "sum"),
        ]
        outputs = {output for _, _, output in steps}
        for operator, inputs, output in steps:
            own = [f"{name}{number}" if name in outputs else name for name in inputs]
            nodes.append(helper.make_node(operator, own, [f"{output}{number}"]))
        state = f"sum{number}"
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "blocks",
        [helper.make_tensor_value_info("states", kind, [1, _TOKENS, _WIDTH])],
        [helper.make_tensor_value_info(state, kind, [1, _TOKENS, _WIDTH])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)

"""`LatencyTable`: what an architecture costs on one target and deployment, fitted on measured whole networks."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.documents import adapter, parse_json
from instatune_deploy.values.faults import first_fault
from instatune_deploy.values.layer_costs import SWITCH, CostsMs, feature_names, features
from instatune_deploy.values.space import TRANSFORMER, Architecture, SearchSpace
from instatune_deploy.values.trees import problem

SCHEMA_VERSION = 2
#: Under which names the costs of a transformer's layers stand in a file, which were written so before there were others.
_WRITTEN = {"heads": "attention_ms", "ffn": "ffn_ms"}
PERCENTILES = ("p50", "p90", "p99")


@dataclass(frozen=True)
class LatencySample:
    """Measured latency of one architecture in `n` runs: what is predicted (`label_ms`), and percentiles of the runs."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    architecture: str
    label_ms: float
    interval_pct: float | None
    """Half-width of the label's 95% confidence interval among the networks of one measurement (% of it); None where
    too little was measured to say."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    half_labels_ms: tuple[float, float]
    """The label of the odd and of the even sessions alone (it is loaded several times); how far they differ is the noise."""
    converged: bool
    """Whether the confidence interval closed before the time cap."""

    def percentile_ms(self, percentile: str) -> float:
        """Measured latency at ``p50``, ``p90`` or ``p99``."""
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}[percentile]


@dataclass(frozen=True)
class HeldOutError:
    """How far a table is from networks that no fit has seen, and how far these are from themselves (percent)."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    mape_pct: float
    max_pct: float
    within_5_pct: float
    kendall_tau: float
    noise_floor_pct: float
    """Mean difference between the labels of the odd and of the even sessions of each network."""
    n: int


@dataclass(frozen=True)
class Disturbance:
    """What else the machine did while a table was measured.

    CPUs that other processes used and that the hypervisor took (mean), the share of runs that another process
    interrupted, the share of rounds that were slower by 5% than the fastest quarter, and seconds waited for calm.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    others_cpus: float
    stolen_cpus: float
    interrupted_pct: float
    slow_rounds_pct: float
    waited_s: float


@dataclass(frozen=True)
class Machine:
    """What measured: the parts of a machine that latency depends on, and how busy it was (1-minute load average).

    `accelerators` are its GPUs and NPUs, each as the interface it is reached by and its name: ``cuda: NVIDIA H200``.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    cpu_model: str
    architecture: str
    logical_cpus: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    load_1min: float
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A predicted latency, and the interval that 95% of networks are in, by how far held-out networks were off."""

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Latency of every architecture whose choices are in the table.

    ``fixed + sum over layers(cost[heads] + cost[width]) + switch * (layers that differ from the one before)``:
    a network of unequal layers is slower than equal ones suggest, for buffers and kernels are reused less. The layers of
    each stage have costs of their own, and so has the first of them where there are several stages. Where
    `trees` (of the features in `features`) lowered the error in cross-validation, times one plus what they say.

    Estimates are predictions of the label, which is a network's level on this machine when it is at its fastest
    (mean of the fastest quarter of runs); or of a percentile, by what that percentile of all networks' runs was of their
    labels. All latencies are in ms for one call of `deployment.batch` samples.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    target: str
    deployment: Deployment
    signature: str
    fixed_ms: float
    layer_ms: dict[str, float]
    """What each choice adds to a layer, by the names of `features`, such as ``heads=12``."""
    switch_ms: float
    trees: tuple[Any, ...]
    fit: str
    """How it was fitted and why there are trees or none."""
    percentile_ratio: dict[str, float]
    interval_pct: dict[str, float]
    """Half-width of the 95% interval of an estimate of the ``label`` and of each percentile, in % of it."""
    samples: tuple[LatencySample, ...]
    heldout: tuple[LatencySample, ...]
    error: HeldOutError
    machine: Machine
    disturbance: Disturbance
    versions: dict[str, str]
    options: dict[str, str]
    """What the runtime was set to."""
    settings: dict[str, float]
    """How it was sampled: rounds, precision (fraction), seconds at most, seed."""
    date: str
    measure_s: float
    """Seconds of measuring the probes; `heldout_s`: the held-out networks, which the table does not need."""
    heldout_s: float
    raw_sha256: str | None
    """SHA-256 of the file with every run that lies beside the table; None where none was kept."""
    dimensions: tuple[str, ...] = TRANSFORMER
    """What the choices of a layer count."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version: is {self.schema_version}, this release reads {SCHEMA_VERSION}")
        for name in ("fixed_ms", "switch_ms", "layer_ms", "percentile_ratio", "interval_pct"):
            value = getattr(self, name)
            if not all(math.isfinite(number) for number in (value.values() if isinstance(value, dict) else [value])):
                raise ValueError(f"{name}: holds a number that is not finite")
        for name in self.layer_ms:
            dimension, _, count = name.rpartition(".")[2].partition("=")
            if dimension not in self.dimensions or not count.isdecimal():
                raise ValueError(f"layer_ms: {name!r} is no choice of {', '.join(self.dimensions)}")
        if set(self.percentile_ratio) != set(PERCENTILES) or set(self.interval_pct) != {"label", *PERCENTILES}:
            raise ValueError("percentile_ratio, interval_pct: must name label, p50, p90 and p99")
        for group in ("samples", "heldout"):
            for number, sample in enumerate(getattr(self, group)):
                for name in ("label_ms", "p50_ms", "p90_ms", "p99_ms"):
                    if not (math.isfinite(getattr(sample, name)) and getattr(sample, name) > 0):
                        raise ValueError(f"{group}.{number}.{name}: holds a latency that is not a positive number")
        for tree in self.trees:
            if wrong := problem(tree):
                raise ValueError(f"trees: one {wrong}")

    def estimate_ms(self, architecture: Architecture, percentile: str | None = None) -> float:
        """Predicted latency in ms: the label, or `percentile` (p50, p90, p99).

        Raises:
            TableError: the table lacks an entry that the architecture needs; nothing is extrapolated.
        """
        try:
            total = self._costs.of(architecture)
        except (KeyError, ValueError):
            missing = ", ".join(self.missing(architecture))
            raise TableError(f"latency table {self.target}/{self.deployment.name} has no entry for {missing}") from None
        if percentile is None:
            return total
        if percentile not in self.percentile_ratio:
            raise TableError(f"unknown percentile {percentile!r}; known: {', '.join(self.percentile_ratio)}")
        return total * self.percentile_ratio[percentile]

    @cached_property
    def _costs(self) -> CostsMs:
        return CostsMs(self.fixed_ms, self.layer_ms, self.switch_ms, self.trees, self.dimensions)

    def estimate(self, architecture: Architecture, percentile: str | None = None) -> Estimate:
        """Predicted latency in ms with the interval that 95% of networks are in; see `estimate_ms`."""
        ms = self.estimate_ms(architecture, percentile)
        share = self.interval_pct[percentile or "label"] / 100
        return Estimate(ms, ms * max(0.0, 1 - share), ms * (1 + share))

    def missing(self, wanted: Architecture | SearchSpace) -> list[str]:
        """The entries, such as ``heads=7`` or ``ffn=640``, that `wanted` needs and the table lacks."""
        if isinstance(wanted, SearchSpace):
            needed = feature_names(wanted)
        elif len(wanted.layers[0]) != len(self.dimensions):
            return [f"{len(wanted.layers[0])} counts a layer"]
        else:
            needed = list(features(wanted, self.dimensions))
        return [name for name in needed if name != SWITCH and name not in self.layer_ms]

    @property
    def file_name(self) -> str:
        """The table's path below a directory of tables."""
        return table_file(self.target, self.signature, self.deployment)

    @property
    def raw_name(self) -> str:
        """The path of the file with every run below a directory of tables."""
        return raw_file(self.file_name)

    def to_json(self) -> str:
        """Readable JSON that diffs line by line; `from_json` reads it back."""
        data = asdict(self)
        if self.dimensions == TRANSFORMER:
            costs = [(*name.split("="), ms) for name, ms in data.pop("layer_ms").items()]
            for dimension, name in _WRITTEN.items():
                data[name] = {int(count): ms for kind, count, ms in costs if kind == dimension}
            del data["dimensions"]
        text = json.dumps(data, indent=1, sort_keys=True)
        # One line a sample: the lists of numbers stay together.
        return re.sub(r"\{[^{}]*\"label_ms\"[^{}]*\}", lambda m: " ".join(m[0].split()), text) + "\n"

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """The table in a file.

        Raises:
            TableError: it cannot be read, is damaged or was edited; names the field.
        """
        return cls.from_json(read_text(path), str(path))

    @classmethod
    def from_json(cls, text: str, source: str = "latency table") -> LatencyTable:
        """The table that `to_json` wrote; `source` names it in errors.

        Raises:
            TableError: it is damaged or was edited; names the file and the field.
        """
        try:
            table = adapter(LatencyTable).validate_python(_of_layers(parse_json(text)))
        except pydantic.ValidationError as error:
            raise TableError(f"{source}: {first_fault(error)}") from None
        except json.JSONDecodeError as error:
            raise TableError(f"{source}: not JSON: {error}") from None
        except ValueError as error:
            raise TableError(f"{source}: {error}") from None
        if table.heldout:
            try:
                found = table.mean_error_pct()
            except UsageError as error:
                raise TableError(f"{source}: heldout: {error}") from None
            if abs(found - table.error.mape_pct) > 1e-6 * max(1.0, found):
                raise TableError(
                    f"{source}: error.mape_pct: is {table.error.mape_pct:.6g}, but its entries and held-out samples give "
                    f"{found:.6g}: it was edited by hand"
                )
        return table

    def mean_error_pct(self) -> float:
        """Mean error of the estimates of the held-out networks, in % of their labels."""
        errors = [abs(self.estimate_ms(Architecture.parse(s.architecture)) / s.label_ms - 1) for s in self.heldout]
        return 100 * sum(errors) / len(errors)


def read_text(path: Path) -> str:
    """The text of a table's file.

    Raises:
        TableError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from None


def table_file(target: str, signature: str, deployment: Deployment) -> str:
    """Where a table lies below a directory of tables."""
    return f"{target}/{signature}/{deployment.name}.json"


def raw_file(table_path: str) -> str:
    """Where every run lies that the table at `table_path` was made from."""
    return table_path.removesuffix(".json") + ".samples.npz"


def _of_layers(data: Any) -> Any:
    """The fields of a table from what stands in its file."""
    if not isinstance(data, dict) or "layer_ms" in data:
        return data
    layer_ms: dict[str, Any] = {}
    for dimension, name in _WRITTEN.items():
        if not isinstance(costs := data.get(name), dict):
            raise ValueError(f"{name}: holds no cost for each choice")
        layer_ms.update({f"{dimension}={choice}": ms for choice, ms in costs.items()})
    return {**{name: value for name, value in data.items() if name not in _WRITTEN.values()}, "layer_ms": layer_ms}


def table_statistics(table: LatencyTable) -> dict[str, Any]:
    """The numbers a user sees of a table, with what they are."""
    return {
        "target": table.target,
        "deployment": table.deployment.name,
        "signature": table.signature,
        "probes": len(table.samples),
        **{f"heldout_{k}": v for k, v in asdict(table.error).items()},
        "interval_pct": table.interval_pct["label"],
        "disturbance": asdict(table.disturbance),
        "measure_s": table.measure_s,
        "heldout_s": table.heldout_s,
        "date": table.date,
    }

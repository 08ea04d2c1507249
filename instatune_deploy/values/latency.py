"""`LatencyTable`: what an architecture costs on one target and deployment, fitted on measured whole networks."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from instatune_deploy.errors import TableError
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Deployment

SCHEMA_VERSION = 1
PERCENTILES = ("p50", "p90", "p99")


@dataclass(frozen=True)
class LatencySample:
    """Measured latency of one architecture in `n` runs: what is predicted (`label_ms`), and percentiles."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    architecture: str
    label_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    half_labels_ms: tuple[float, float]
    """The label of the odd and of the even rounds alone; how far they differ is the noise."""
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
    n: int


@dataclass(frozen=True)
class Machine:
    """What measured: the parts of a machine that latency depends on, and how busy it was (1-minute load average)."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    cpu_model: str
    architecture: str
    logical_cpus: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    load_1min: float


@dataclass(frozen=True)
class LatencyTable:
    """Latency of every architecture whose choices are in the table.

    ``fixed + sum over layers(attention[heads] + ffn[width]) + switch * (layers that differ from the one before)``:
    a network of unequal layers is slower than equal ones suggest, for buffers and kernels are reused less.

    Estimates are predictions of the label, which is the mean of the fastest quarter of runs or their median, whichever
    was steadier here (`statistic`); or of a percentile, by the ratio to it that the measured networks had. All latencies are in ms for one call of `deployment.batch` samples.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    target: str
    deployment: Deployment
    signature: str
    fixed_ms: float
    attention_ms: dict[int, float]
    ffn_ms: dict[int, float]
    switch_ms: float
    percentile_ratio: dict[str, float]
    statistic: str
    samples: tuple[LatencySample, ...]
    heldout: tuple[LatencySample, ...]
    error: HeldOutError
    machine: Machine
    versions: dict[str, str]
    date: str
    measure_s: float
    rejected_rounds: int
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        numbers = [
            self.fixed_ms,
            self.switch_ms,
            *self.attention_ms.values(),
            *self.ffn_ms.values(),
            *self.percentile_ratio.values(),
        ]
        numbers += [
            value for s in (*self.samples, *self.heldout) for value in (s.label_ms, s.p50_ms, s.p90_ms, s.p99_ms)
        ]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("holds a number that is not finite")
        if any(s.label_ms <= 0 for s in (*self.samples, *self.heldout)):
            raise ValueError("holds a latency that is not positive")
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"has schema version {self.schema_version}, this release reads {SCHEMA_VERSION}")

    def estimate_ms(self, architecture: Architecture, percentile: str | None = None) -> float:
        """Predicted latency in ms: the label (see `statistic`), or `percentile` (p50, p90, p99).

        Raises:
            TableError: the table lacks an entry that the architecture needs; nothing is extrapolated.
        """
        missing = self.missing(architecture)
        if missing:
            raise TableError(
                f"latency table {self.target}/{self.deployment.name} has no entry for {', '.join(missing)}"
            )
        layers = sum(self.attention_ms[heads] + self.ffn_ms[ffn] for heads, ffn in architecture.layers)
        total = self.fixed_ms + layers + self.switch_ms * architecture.switches
        if percentile is None:
            return total
        if percentile not in self.percentile_ratio:
            raise TableError(f"unknown percentile {percentile!r}; known: {', '.join(self.percentile_ratio)}")
        return total * self.percentile_ratio[percentile]

    def missing(self, wanted: Architecture | SearchSpace) -> list[str]:
        """The entries, such as ``heads=7`` or ``ffn=640``, that `wanted` needs and the table lacks."""
        if isinstance(wanted, SearchSpace):
            heads, ffn = set(wanted.head_choices), set(wanted.ffn_choices)
        else:
            heads, ffn = {c.heads for c in wanted.layers}, {c.ffn for c in wanted.layers}
        lacking = [f"heads={h}" for h in sorted(heads - self.attention_ms.keys())]
        return lacking + [f"ffn={f}" for f in sorted(ffn - self.ffn_ms.keys())]

    @property
    def file_name(self) -> str:
        """The table's path below a directory of tables."""
        return table_file(self.target, self.signature, self.deployment)

    def to_json(self) -> str:
        """Readable JSON that diffs line by line; `from_json` reads it back."""
        data = asdict(self)
        text = json.dumps(data, indent=1, sort_keys=True)
        # One line a sample: the lists of numbers stay together.
        return re.sub(r"\{[^{}]*\"label_ms\"[^{}]*\}", lambda m: " ".join(m[0].split()), text) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "latency table") -> LatencyTable:
        """The table that `to_json` wrote; `source` names it in errors.

        Raises:
            TableError: it is damaged; names the file and the field.
        """
        try:
            return pydantic.TypeAdapter(LatencyTable).validate_python(json.loads(text))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "table"
            raise TableError(f"{source}: {field}: {first['msg']}") from None
        except ValueError as error:
            raise TableError(f"{source}: not JSON: {error}") from None


def table_file(target: str, signature: str, deployment: Deployment) -> str:
    """Where a table for these lies below a directory of tables."""
    return f"{target}/{signature}/{deployment.name}.json"


def find_table(
    target: str,
    signature: str,
    deployment: Deployment,
    space: SearchSpace,
    directories: list[Path],
    *,
    machine: Machine,
    versions: dict[str, str],
) -> tuple[LatencyTable | None, list[str]]:
    """The first table in `directories` that covers `space` and was measured on a machine and runtime like this one.

    Returns:
        The table or None, and for each table passed over a line that says why.

    Raises:
        TableError: a table is damaged.
    """
    passed_over: list[str] = []
    for directory in directories:
        path = directory / table_file(target, signature, deployment)
        if not path.is_file():
            continue
        table = LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path))
        differences = table.missing(space)
        if table.machine.cpu_model != machine.cpu_model or table.machine.logical_cpus != machine.logical_cpus:
            differences.append(f"measured on {table.machine.logical_cpus} x {table.machine.cpu_model}")
        runtime = deployment.runtime
        if table.versions.get(runtime) != versions.get(runtime):
            differences.append(f"measured with {runtime} {table.versions.get(runtime)}")
        if not differences:
            return table, passed_over
        passed_over.append(f"{path} passed over: {', '.join(differences)}")
    return None, passed_over


def table_statistics(table: LatencyTable) -> dict[str, Any]:
    """The numbers a user sees of a table, with what they are."""
    return {
        "target": table.target,
        "deployment": table.deployment.name,
        "signature": table.signature,
        "probes": len(table.samples),
        **{f"heldout_{k}": v for k, v in asdict(table.error).items()},
        "measure_s": table.measure_s,
        "date": table.date,
    }

"""`space: auto`: the choices that each layer needs, from what its parts matter to a fine-tuned model and what they cost.

InstaTune (arXiv 2308.15609) searches spaces that people chose and leaves finding one as future work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from textwrap import wrap

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.presets import AUTO
from instatune_deploy.values.space import Architecture, SearchSpace

#: Head counts and MLP widths, each, that tables for a proposal know. A table of so many takes 18 probes at most.
_FINENESS = 8


@dataclass(frozen=True)
class Rules:
    """What is proposed at most and at least.

    Args:
        heads, ffn: choices of a layer, at most and at least 2 (counts).
        kept_importance: share (0..1) of its importance that the smallest choice of an average layer keeps; any layer may
            lose as much of its own, or as much as the average one.
        lost_by_depth: share (0..1) that a depth may lose of what the layers bring beyond a single one: the loss of one
            layer alone minus that of all. It is judged before training, which brings most of it back.
    """

    heads: int = 4
    ffn: int = 4
    kept_importance: float = 0.5
    lost_by_depth: float = 2 / 3


@dataclass(frozen=True)
class Scores:
    """What the parts of a fine-tuned model matter to it.

    Args:
        heads, ffn: for each layer the importance of every head and neuron, in any order.
        losses: by depth, 1 to all layers, the loss at full width when the least important layers are gone.

    Raises:
        UsageError: an importance is not a number, or negative, or a loss of the full network or one layer is missing.
    """

    heads: tuple[tuple[float, ...], ...]
    ffn: tuple[tuple[float, ...], ...]
    losses: Mapping[int, float]

    def __post_init__(self) -> None:
        for name in ("heads", "ffn"):
            for number, layer in enumerate(getattr(self, name)):
                if not layer or not all(math.isfinite(score) and score >= 0 for score in layer):
                    raise UsageError(
                        f"layer {number}: the importance of its {name} is not a number: was it fine-tuned?"
                    )
        if not all(math.isfinite(self.losses.get(depth, math.nan)) for depth in (1, len(self.heads))):
            raise UsageError("the fine-tuned model's loss is not a number, with all of its layers or with one")


@dataclass(frozen=True)
class Choices:
    """Choices (counts, ascending), and why these."""

    counts: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Proposal:
    """A proposed space with its reasons: depths, what holds for heads and widths of every layer, and those of each."""

    depths: Choices
    heads_why: str
    heads: tuple[Choices, ...]
    ffn_why: str
    ffn: tuple[Choices, ...]

    @property
    def space(self) -> SearchSpace:
        """The space; until layers are ordered by importance, the last ones go first."""
        layers = len(self.heads)
        heads, ffn = (tuple(choices.counts for choices in group) for group in (self.heads, self.ffn))
        return SearchSpace.stack(self.depths.counts, heads, ffn, tuple(reversed(range(layers))))

    def to_yaml(self) -> str:
        """The section `space` of a recipe, with the reasons as comments."""
        lines = ["space:", *_comment(self.depths.why), f"  depths: {list(self.depths.counts)}"]
        for name, why, layers in (("heads", self.heads_why, self.heads), ("ffn", self.ffn_why, self.ffn)):
            lines += [*_comment(why), f"  {name}:"]
            for number, choices in enumerate(layers):
                lines.append(f"    - {list(choices.counts)}  # layer {number}: {choices.why}")
        return "\n".join(lines) + "\n"


def probing_space(full: Architecture) -> SearchSpace:
    """The choices that latency tables for a proposal must know: in eight equal steps, and depths down to a third.

    A table of them covers every space that is proposed, so that the search needs no other.
    """
    heads, ffn = full.layers[0]
    depths = range(max(1, full.depth // 3), full.depth + 1)
    return SearchSpace.homogeneous(full.depth, depths, _steps(heads, 1), _steps(ffn, 16))


def _steps(full: int, unit: int) -> list[int]:
    """Equal steps up to `full` as multiples of `unit`, fewer where they coincide."""
    near = {max(unit, unit * round(full * step / _FINENESS / unit)) for step in range(1, _FINENESS)}
    return [*sorted(count for count in near if count < full), full]


def propose(full: Architecture, scores: Scores, tables: Sequence[LatencyTable], rules: Rules | None = None) -> Proposal:
    """The space that a model needs on the tables' targets and deployments.

    - A choice stays only if, taken in every layer, it is faster on some table than the next larger one that stayed, by
      more than that table's noise floor: others save MACs but no time that could be told.
    - The smallest choice of a layer keeps at least a share of its importance, or loses no more than that of the average
      layer may. So a layer in which few units carry all gets small choices, as does one that matters little; one in
      which all matter keeps large ones.
    - Between it and the full one are those that leave out the least: importance times time that lie between two
      neighbours cannot be traded by any network of the space. The sum of these areas is made as small as so few choices
      can make it, which puts them where importance falls fastest for the time it saves.
    - A depth stays unless its loss is too large, see `Rules`.

    The full network is always in the space.

    Args:
        full: the full network, whose layers are equal.

    Raises:
        UsageError: there are no tables.
        TableError: a table lacks an entry of `probing_space`.
    """
    rules = rules or Rules()
    grid, (heads, ffn) = probing_space(full), full.layers[0]
    _check_tables(tables, grid)
    depth_times = _saving_time({d: Architecture.uniform(d, heads, ffn) for d in grid.depths[0]}, tables)
    head_times = _saving_time({h: Architecture.uniform(full.depth, h, ffn) for h in grid.head_choices}, tables)
    ffn_times = _saving_time({f: Architecture.uniform(full.depth, heads, f) for f in grid.ffn_choices}, tables)
    return Proposal(
        _depths(depth_times, scores.losses, rules),
        head_times.describe("heads in every layer"),
        _layers(head_times.shares, scores.heads, rules.heads, rules.kept_importance),
        ffn_times.describe("neurons in every layer"),
        _layers(ffn_times.shares, scores.ffn, rules.ffn, rules.kept_importance),
    )


def _check_tables(tables: Sequence[LatencyTable], grid: SearchSpace) -> None:
    if not tables:
        raise UsageError("space: auto needs a latency table of a target")
    for table in tables:
        if missing := table.missing(grid):
            raise TableError(
                f"latency table {table.target}/{table.deployment.name} has no entry for {', '.join(missing)}: "
                f"profile the target with --space {AUTO}"
            )


@dataclass(frozen=True)
class _Times:
    """Choices of one kind that save time, ascending, each with its network's latency as a share of the full network's
    (mean over tables); those that do not, each with the larger one that is as fast; and where that was measured."""

    shares: dict[int, float]
    slow: dict[int, int]
    where: str

    def describe(self, what: str) -> str:
        """What the choices cost, and why others were left out."""
        costs = ", ".join(f"{count}: {100 * share:.0f}%" for count, share in self.shares.items())
        text = f"Latency with so many {what}, of the full network's: {costs} on {self.where}"
        for larger in sorted(set(self.slow.values())):
            slow = [count for count, other in self.slow.items() if other == larger]
            text += f"; {_join(slow)} left out: as slow as {larger}, as far as the tables can tell"
        return text


def _saving_time(networks: Mapping[int, Architecture], tables: Sequence[LatencyTable]) -> _Times:
    """Which of a kind's choices save time; `networks` has one for each, ascending, the full network last."""
    counts = sorted(networks)
    latency = [{count: table.estimate_ms(networks[count]) for count in counts} for table in tables]
    kept, slow = [counts[-1]], {}
    for count in reversed(counts[:-1]):
        larger = kept[-1]
        savings_pct = [100 * (ms[larger] - ms[count]) / ms[counts[-1]] for ms in latency]
        if any(saved > table.error.noise_floor_pct for saved, table in zip(savings_pct, tables, strict=True)):
            kept.append(count)
        else:
            slow[count] = larger
    shares = {count: math.fsum(ms[count] / ms[counts[-1]] for ms in latency) / len(tables) for count in sorted(kept)}
    deployments: dict[str, list[str]] = {}
    for table in tables:
        deployments.setdefault(table.target, []).append(table.deployment.name)
    where = "; ".join(f"{target} ({', '.join(names)})" for target, names in deployments.items())
    return _Times(shares, dict(sorted(slow.items())), where)


def _depths(times: _Times, losses: Mapping[int, float], rules: Rules) -> Choices:
    """The depths whose loss is within bounds."""
    full = max(times.shares)
    limit = losses[full] + rules.lost_by_depth * max(0.0, losses[1] - losses[full])
    kept = tuple(depth for depth in times.shares if depth == full or losses[depth] <= limit)
    why = "Loss before training " + ", ".join(f"{depth}: {losses[depth]:.3f}" for depth in kept)
    if lost := [depth for depth in times.shares if depth not in kept]:
        found = ", ".join(f"{losses[depth]:.3f}" for depth in lost)
        why += f"; {_join(lost)} left out: {found}, beyond {limit:.3f}"
    if times.slow:
        why += f"; {_join(times.slow)} left out: save no time"
    return Choices(kept, why)


def _layers(
    times: Mapping[int, float], importance: Sequence[Sequence[float]], at_most: int, least: float
) -> tuple[Choices, ...]:
    """The choices of each layer's heads or neurons; `times` has those that save time, ascending, the full one last."""
    mean = math.fsum(math.fsum(layer) for layer in importance) / len(importance)
    return tuple(_layer(times, layer, mean, at_most, least) for layer in importance)


def _layer(times: Mapping[int, float], importance: Sequence[float], mean: float, at_most: int, least: float) -> Choices:
    """The choices of one layer; `mean` is the importance of all heads or neurons of the average layer."""
    shares, whole = _kept_importance(importance), math.fsum(importance)
    enough = [c for c in times if shares[c] >= least or whole * (1 - shares[c]) <= mean * (1 - least)]
    counts = _leaving_out_least(enough, shares, times, at_most)
    weight = f"has {whole / mean:.2f} of the average importance" if mean else "nothing matters"
    kept = ", ".join(f"{count} keep {100 * shares[count]:.0f}%" for count in counts[:-1])
    why = f"{weight}, {kept or 'no smaller choice will do'}"
    if below := [count for count in times if count < counts[0]]:
        why += f"; {below[-1]} would keep {100 * shares[below[-1]]:.0f}%"
    return Choices(counts, why)


def _kept_importance(importance: Sequence[float]) -> dict[int, float]:
    """The share (0..1) of all importance that the best 1, 2, ... units have; where nothing matters, all matter alike."""
    best_first = sorted(importance, reverse=True)
    if best_first[0] == 0:
        best_first = [1.0] * len(best_first)
    sums = list(accumulate(best_first))
    return {count: total / sums[-1] for count, total in enumerate(sums, start=1)}


def _leaving_out_least(
    counts: Sequence[int], shares: Mapping[int, float], times: Mapping[int, float], at_most: int
) -> tuple[int, ...]:
    """The first and the last of `counts` and, so that they are `at_most`, those between that leave the least area of
    importance times time between neighbours."""

    def left_out(chosen: tuple[int, ...]) -> float:
        return sum((shares[b] - shares[a]) * max(0.0, times[b] - times[a]) for a, b in pairwise(chosen))

    if len(counts) <= at_most:
        return tuple(counts)
    first, *between, last = counts
    return min(((first, *middle, last) for middle in combinations(between, at_most - 2)), key=left_out)


def _comment(text: str) -> list[str]:
    """Lines of YAML."""
    return [f"  # {line}" for line in wrap(text, 112, break_on_hyphens=False)]


def _join(counts: Iterable[int]) -> str:
    """``3``, ``3 and 4``, ``3, 4 and 5``."""
    *others, last = map(str, counts)
    return f"{', '.join(others)} and {last}" if others else last

"""Trainings of sub-networks and what they reach, cell by cell (method, seed, point): each is measured once and kept.

Stopped at any point, a benchmark that asks for the same cells goes on.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.tuning_tasks import Material
from instatune_deploy.data.dataset import Split
from instatune_deploy.elastic.importance import first_order_importance, sort_by_importance
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.training import labelled_batches
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.evaluate.precision import cpu_has_bf16
from instatune_deploy.stages.finetune import fine_tuned, finetune
from instatune_deploy.stages.predict import fit_predictor
from instatune_deploy.stages.tune import tune
from instatune_deploy.values.evaluations import read_evaluations
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.macs import NetworkShape, count_macs
from instatune_deploy.values.recipe import FinetuneSection
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.steadying import steadied
from instatune_deploy.workspace import Workspace, write_json

#: Shares of the full network's multiply-accumulates that are cut, by the name in the figures.
CUTS = {"25": 0.256, "42": 0.426, "53": 0.5362, "60": 0.60, "70": 0.70}
#: Those of the control, which is trained once for each.
CONTROL_CUTS = ("53", "70")
#: Units that the control takes away at a time.
GROUPS = {"heads": 1, "ffn": 64, "filters": 8}
Report = Callable[[str], None]
#: Of every training and every method alike: bf16 takes two thirds of the time or less on a CPU that has it, many times on another.
PRECISION = {"bf16": torch.cuda.is_available() or cpu_has_bf16()}

#: What is trained elastically, as changes to the preset ``best``.
VARIANTS: dict[str, dict[str, Any]] = {
    "best": {},
    "paper": {"preset": "paper", "gamma": "on"},
    "paper_with_our_rate": {"preset": "paper", "gamma": "on", "learning_rate": 2.0e-4},
    "paper_gamma_off": {"preset": "paper"},
    "paper_gamma_first": {"preset": "paper", "gamma": "first_epochs"},
    # Each ingredient of `best` taken away.
    "without_sorting": {"importance": "none"},
    "without_layer_order": {"layer_order": "last_first"},
    "without_warm_start": {"start": "pretrained"},
    "without_teacher": {"gamma": "off"},
    "without_sampling_by_macs": {"sampling": "uniform"},
    "without_size_power": {"size_power": 0.0},
    "without_hidden_states": {"hidden_weight": 0.0},
    "without_higher_rate": {"learning_rate": 5.0e-5},
    "with_dropout": {"dropout": None},
    # Ingredients that `best` does not have.
    "with_fisher": {"importance": "fisher"},
    "with_sandwich": {"sampling": "sandwich", "subnetworks": 2},
    "with_front": {"sampling": "front"},
    "with_widening": {"widen_epochs": 2},
    "with_attention": {"attention_weight": 1.0},
    "with_alpha_divergence": {"divergence": "alpha"},
    "with_moving_mean": {"ema_decay": 0.995},
    "with_layer_decay": {"layer_decay": 0.9},
    "with_head_rate": {"head_rate": 5.0},
    "with_two_subnetworks": {"subnetworks": 2},
    "with_mostly_small": {"size_power": 2.0},
    "with_augmenting": {"augment": 0.5},
    # The paper's open questions.
    "teacher_first_epoch": {"gamma": "first_epochs"},
    "epochs_x2": {"epochs": 8},
    "epochs_x3": {"epochs": 12},
    "paper_epochs_x2": {"preset": "paper", "gamma": "on", "epochs": 8},
    "paper_epochs_x3": {"preset": "paper", "gamma": "on", "epochs": 12},
    "space_small": {},
    "space_large": {},
    # The paper's Fig. 4 for BEiT-3: 9 to 12 of 12 layers, in the place of 11 or 12.
    "layers_9_to_12": {},
}

#: Spaces other than the task's own, as multiples (rounded) of the full model's layers, heads and MLP width: how large a space?
SPACES = {
    "space_small": ([0.5, 1.0], [0.5, 1.0], [1 / 3, 1.0]),
    "space_large": ([1 / 3, 0.5, 2 / 3, 5 / 6, 1.0], [i / 6 for i in range(1, 7)], [i / 12 for i in range(1, 13)]),
    "layers_9_to_12": ([9 / 12, 10 / 12, 11 / 12, 1.0], [6 / 12, 8 / 12, 10 / 12, 1.0], [2 / 3, 5 / 6, 1.0]),
}


class Bench:
    """The cells of one task; each is measured once and kept.

    Args:
        cuts: shares of multiply-accumulates by name; `control_cuts`: names of those that the control is trained for.
    """

    def __init__(
        self, material: Material, report: Report, run: Path, *, cuts: Mapping[str, float] = CUTS,
        control_cuts: Sequence[str] = CONTROL_CUTS,
    ) -> None:  # fmt: skip
        self.cuts, self.control_cuts = cuts, control_cuts
        rows = material.subject.train_rows
        # Cells of other numbers of rows are others.
        self.root = run / (material.subject.name + ("" if rows is None else f"-{rows}-rows"))
        self.material, self.report = material, report
        self.name, self.space = material.subject.name, material.space
        self.key = f"{self.name}, {material.subject.train_rows or 'all'} rows"
        self.data, self.processor = material.data, material.processor

    def limit(self, shape: NetworkShape, cut: str) -> float:
        """Multiply-accumulates that a network may have."""
        return (1 - self.cuts[cut]) * count_macs(shape, shape.full())

    # -- trainings ------------------------------------------------------------------------------------------------

    def settings(self, method: str) -> FinetuneSection:
        teacher = None if self.material.subject.fine_tuned else PRECISION
        return FinetuneSection.model_validate({**VARIANTS[method], **PRECISION, "teacher": teacher})

    def space_of(self, method: str) -> SearchSpace:
        if method not in SPACES:
            return self.space
        full = self.material.full_shape.full()
        sizes = (full.depth, *full.layers[0])
        choices = [
            sorted({max(1, round(share * size)) for share in of})
            for of, size in zip(SPACES[method], sizes, strict=True)
        ]
        return SearchSpace.homogeneous(full.depth, *choices)

    def teacher(self, seed: int, settings: FinetuneSection) -> tuple[PreTrainedModel, Workspace]:
        """The plainly fine-tuned full model of a seed, and where it is kept: all methods share it."""
        workspace = Workspace(self.root / f"teacher-{seed}")
        model = fine_tuned(
            settings, lambda: self.material.load_model(seed), self.data, self.processor, workspace, key=self.key, seed=seed,
            report=self.report,
        )  # fmt: skip
        return model, workspace

    def supernet(self, method: str, seed: int) -> Supernet:
        """The elastic fine-tuned network of a method and seed."""
        settings, workspace = self.settings(method), Workspace(self.root / f"{method}-{seed}")
        trains_teacher = settings.needs_teacher and settings.teacher is not None
        if trains_teacher and not workspace.path("teacher").exists():
            _, shared = self.teacher(seed, settings)
            for part in ("teacher", ".stages"):
                shutil.copytree(shared.path(part), workspace.path(part), dirs_exist_ok=True)
        return finetune(
            settings, lambda: self.material.load_model(seed), self.space_of(method), self.data, self.processor, workspace,
            key=self.key, seed=seed, report=self.report,
        )  # fmt: skip

    def tuned(
        self, model: PreTrainedModel, space: SearchSpace, architecture: Architecture, seed: int, epochs: float | None = None
    ) -> Supernet:  # fmt: skip
        """One network trained alone from `model`'s weights with the same teacher, for as many epochs as `best` or for `epochs`."""
        settings = self.settings("best")
        if epochs is not None:
            settings = settings.model_copy(update={"epochs": epochs})
        teacher, workspace = self.teacher(seed, settings)
        key = content_key(self.key, space.to_dict(), str(architecture))
        network = tune(
            Supernet(model, space), architecture, teacher, settings, self.data, self.processor, workspace,
            key=key, seed=seed, report=self.report,
        )  # fmt: skip
        return _Alone(network)

    # -- cells ----------------------------------------------------------------------------------------------------

    def kept(self, name: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The rows of a cell, from its file if it was measured before."""
        path = self.root / "cells" / f"{name}.json"
        if not path.is_file():
            self.report(f"cell {name}")
            write_json(path, make())
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows

    def restore(self, result: Path) -> None:
        """Take over the cells of a committed result of as many training rows: machines come and go."""
        if not result.is_file():
            return
        found = json.loads(result.read_text(encoding="utf-8"))
        if found["figures"].get("train_rows", len(self.data.train)) != len(self.data.train):
            return
        cells: dict[str, list[dict[str, Any]]] = {}
        for row in found["rows"]:
            cells.setdefault(_cell(row), []).append(row)
        for name, rows in cells.items():
            self.kept(name, lambda rows=rows: rows)  # type: ignore[misc]

    def reference(self, seed: int) -> list[dict[str, Any]]:
        """The full model: the teacher, and the teacher tuned on with itself as teacher, which is what all are held
        against."""

        def make() -> list[dict[str, Any]]:
            teacher, _ = self.teacher(seed, self.settings("best"))
            full = self.material.full_shape.full()
            distilled = self.tuned(copy.deepcopy(teacher), self.space, full, seed)
            rows = [("teacher", Supernet(teacher, self.space)), ("full", distilled)]
            return [self.row(method, seed, "0", network, full) for method, network in rows]

        return self.kept(f"full-{seed}", make)

    def elastic(self, method: str, seed: int, cuts: Sequence[str]) -> None:
        """Sub-networks of one elastic fine-tuning, one for each cut, chosen on the search split; and the full network."""
        wanted = [c for c in ("0", *cuts) if not (self.root / "cells" / f"{method}-{seed}-{c}.json").is_file()]
        if not wanted:
            return
        supernet = self.supernet(method, seed)
        chosen = {"0": supernet.full, **self.choose(supernet, method, seed, [c for c in wanted if c != "0"])}
        for cut in wanted:
            self.kept(f"{method}-{seed}-{cut}", lambda c=cut: [self.row(method, seed, c, supernet, chosen[c])])

    def pruned(self, seed: int, cut: str) -> list[dict[str, Any]]:
        """The control: the teacher pruned by importance to the same size, and tuned alone."""

        def make() -> list[dict[str, Any]]:
            teacher, _ = self.teacher(seed, self.settings("best"))
            model, space, architecture = self.prune(teacher, cut)
            return [self.row("prune_distil", seed, cut, self.tuned(model, space, architecture, seed), architecture)]

        return self.kept(f"prune_distil-{seed}-{cut}", make)

    def winner(self, seed: int, cut: str) -> list[dict[str, Any]]:
        """The network that was chosen of `best`, tuned alone for an epoch, whether or not it is better then."""

        def make() -> list[dict[str, Any]]:
            architecture, _, tuned = self._winner(seed, cut)
            return [self.row("best_tuned", seed, cut, tuned, architecture)]

        return self.kept(f"best_tuned-{seed}-{cut}", make)

    def winner_unchosen(self, seed: int, cut: str) -> list[dict[str, Any]]:
        """The same network before and after on the search split, by which ``--tune-epochs 1`` keeps the better of both."""

        def make() -> list[dict[str, Any]]:
            architecture, before, tuned = self._winner(seed, cut)
            return [
                self.row(method, seed, cut, network, architecture, self.data.search)
                for method, network in (("best", before), ("best_tuned", tuned))
            ]

        return self.kept(f"search-best_tuned-{seed}-{cut}", make)

    def _winner(self, seed: int, cut: str) -> tuple[Architecture, Supernet, Supernet]:
        """The network that was chosen of `best`, where it is before tuning, and as it is after an epoch of it."""
        (chosen,) = self.kept(f"best-{seed}-{cut}", list)
        architecture, supernet = Architecture.parse(chosen["architecture"]), self.supernet("best", seed)
        return architecture, supernet, self.tuned(supernet.model, supernet.space, architecture, seed, epochs=1)

    def prune(self, teacher: PreTrainedModel, cut: str) -> tuple[PreTrainedModel, SearchSpace, Architecture]:
        """Of the teacher with its units sorted, the network that has lost the least importance for each
        multiply-accumulate: units in groups, wherever they are."""
        full, rows = self.material.full_shape.full(), self.settings("best").importance_rows
        groups = [GROUPS[name] for name in self.space.dimensions]
        widths = tuple(
            tuple(tuple(range(group, count + 1, group)) for count in kind)
            for group, kind in zip(groups, zip(*full.layers, strict=True), strict=True)
        )
        space = SearchSpace(
            tuple((depth,) for depth in full.depths), widths, (), full.depths, self.space.dimensions,
        )  # fmt: skip
        supernet = Supernet(copy.deepcopy(teacher), space)
        scores = first_order_importance(supernet, labelled_batches(self.data.train, rows, 32, self.processor))
        sort_by_importance(supernet, scores)
        # Of each dimension and layer the importance of each group, the first kept first; sets of units add up.
        lost = [
            [
                sum(np.sort(s.numpy())[::-1].reshape(-1, group).sum(axis=1) for s in sets)
                for sets in zip(*kind, strict=True)
            ]
            for group, kind in zip(groups, scores.units, strict=True)
        ]
        shape, kept = self.material.full_shape, [list(choice) for choice in full.layers]

        def architecture() -> Architecture:
            return Architecture(tuple(map(tuple, kept)), full.depths)

        costs = [
            shape.macs_of(stage, first=not place)
            for stage, layers in enumerate(full.stages)
            for place in range(len(layers))
        ]

        def price(layer: int, kind: int) -> float:
            """Importance of a layer's last group for each multiply-accumulate that it saves."""
            less = [count - groups[kind] * (d == kind) for d, count in enumerate(kept[layer])]
            saved = costs[layer].of(tuple(kept[layer])) - costs[layer].of(tuple(less))
            return float(lost[kind][layer][kept[layer][kind] // groups[kind] - 1] / saved)

        while count_macs(shape, architecture()) > self.limit(shape, cut):
            options = [
                (price(layer, kind), kind, layer)
                for layer, choice in enumerate(kept) for kind, group in enumerate(groups) if choice[kind] > group
            ]  # fmt: skip
            _, kind, layer = min(options)
            kept[layer][kind] -= groups[kind]
        return supernet.model, space, architecture()

    # -- measuring ------------------------------------------------------------------------------------------------

    def choose(self, supernet: Supernet, method: str, seed: int, cuts: Sequence[str]) -> dict[str, Architecture]:
        """For each cut the network of at most its size that is best on the search split.

        A dozen at random, then twice the eight that a predictor fitted to all measured so far likes best. Measured values
        are steadied by the networks' distances from the full one, for the best of many measured ones is partly luck.
        """
        path = self.root / f"{method}-{seed}" / "evaluations.jsonl"
        evaluate = Evaluator(
            supernet, self.data.search, self.processor, metric="accuracy", path=path, beside=supernet.full
        )
        pools, drawn = self.pools(supernet.space, seed)
        pools = {cut: pools[cut] for cut in cuts}
        for cut in cuts:
            evaluate(drawn[cut], report=self.report)
        for _ in range(2):
            known = steadied(list(evaluate.known.values()))
            predictor = fit_predictor(supernet.space, known, seed=seed, monotone=False)
            for pool in pools.values():
                fresh = [a for a in pool if a not in evaluate.known]
                order = np.argsort(-predictor.predict(fresh)) if fresh else []
                evaluate([fresh[i] for i in order[:8]], report=self.report)
        steady = {evaluation.architecture: evaluation.value for evaluation in steadied(list(evaluate.known.values()))}
        chosen = {}
        for cut, pool in pools.items():
            chosen[cut] = max((a for a in pool if a in steady), key=steady.__getitem__)
            self.report(f"-{cut}%: {chosen[cut]}")
        return chosen

    def pools(
        self, space: SearchSpace, seed: int
    ) -> tuple[dict[str, list[Architecture]], dict[str, list[Architecture]]]:
        """For each cut the networks of its size that there are to choose from, and a dozen of them at random."""
        shape, rng = self.material.full_shape, random.Random(seed)
        everything = space.sample(min(30_000, space.size), seed=0)
        limits = {cut: self.limit(shape, cut) for cut in self.cuts}
        pools = {
            cut: [a for a in everything if 0.9 * limit < count_macs(shape, a) <= limit] for cut, limit in limits.items()
        }
        return pools, {cut: rng.sample(pool, min(12, len(pool))) for cut, pool in pools.items()}

    def unchosen(self, method: str, seed: int) -> list[dict[str, Any]]:
        """A second look, on the search split, at networks that it has not chosen: of an elastic method the mean of a dozen at
        random for each cut, of those trained alone the same networks again."""

        def alone(name: str, cut: str, network: Supernet, architecture: Architecture) -> dict[str, Any]:
            return self.row(name, seed, cut, network, architecture, self.data.search)

        def make() -> list[dict[str, Any]]:
            if method in ("full", "prune_distil"):
                teacher, _ = self.teacher(seed, self.settings("best"))
            if method == "full":
                full = self.material.full_shape.full()
                return [alone("full", "0", self.tuned(copy.deepcopy(teacher), self.space, full, seed), full)]
            if method == "prune_distil":
                pruned = {cut: self.prune(teacher, cut) for cut in self.control_cuts}
                return [
                    alone(method, cut, self.tuned(model, space, architecture, seed), architecture)
                    for cut, (model, space, architecture) in pruned.items()
                ]
            path = self.root / f"{method}-{seed}" / "evaluations.jsonl"
            known = {found.architecture: found for found in read_evaluations(path).values()}
            rows = []
            for cut, drawn in self.pools(self.supernet(method, seed).space, seed)[1].items():
                values = [100 * known[a].value for a in drawn if a in known]
                if values:
                    rows.append(
                        {
                            "method": method, "seed": seed, "cut": cut, "networks": len(values),
                            "accuracy_pct": statistics.fmean(values), "split": "search", "n": len(self.data.search),
                        }
                    )  # fmt: skip
            return rows

        return self.kept(f"search-{method}-{seed}", make)

    def measure(self, method: str, seed: int, cuts: Sequence[str]) -> None:
        """All cells of a method and seed: "full" is the full model, "prune_distil" the control, "best_tuned" the winners of
        "best" tuned alone, others are elastic."""
        if method == "full":
            self.reference(seed)
        elif method == "prune_distil":
            for cut in [c for c in self.control_cuts if c in cuts]:
                self.pruned(seed, cut)
        elif method == "best_tuned":
            for cut in cuts:
                self.winner(seed, cut)
            return
        else:
            self.elastic(method, seed, cuts)
        self.unchosen(method, seed)

    def rows(self) -> list[dict[str, Any]]:
        """Everything that was measured so far."""
        paths = sorted((self.root / "cells").glob("*.json"))
        return [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]

    def row(
        self, method: str, seed: int, cut: str, network: Any, architecture: Architecture, split: Split | None = None
    ) -> dict[str, Any]:
        """The accuracy of a network on the report split, or another."""
        split = split or self.material.report_split
        shape = self.material.full_shape
        # Of its own: several processes may measure cells of one task side by side, each other seeds.
        path = self.root / f"report-{method}-{seed}-{cut}.jsonl"
        path.unlink(missing_ok=True)
        found = Evaluator(network, split, self.processor, metric="accuracy", path=path)([architecture])[0]
        path.unlink()
        share = count_macs(shape, architecture) / count_macs(shape, shape.full())
        self.report(f"{method}, seed {seed}, -{100 * (1 - share):.1f}% MACs: {100 * found.value:.2f}%")
        return {
            "method": method, "seed": seed, "cut": cut, "architecture": str(architecture),
            "macs_cut_pct": 100 * (1 - share), "accuracy_pct": 100 * found.value, "split": split.name, "n": found.n,
        }  # fmt: skip


def _cell(row: dict[str, Any]) -> str:
    """The name of the cell that a row belongs to."""
    if "method" not in row:
        return "step-cost"
    method, seed = row["method"], row["seed"]
    if row["split"] == "search":
        return f"search-{method}-{seed}"
    return f"full-{seed}" if method in ("teacher", "full") else f"{method}-{seed}-{row['cut']}"


class _Alone(Supernet):
    """A network of one shape where an `Evaluator` expects a super-network."""

    def __init__(self, network: PreTrainedModel) -> None:
        super(Supernet, self).__init__()
        self.model = network

    def forward(self, batch: Any, architectures: Sequence[Architecture], **options: Any) -> list[Any]:
        return [self.model(**batch)]


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over seeds of the points lost against the distilled full model of the same seed: on the
    report split, and, as ``search_drop_points``, on the search split of networks that it has not chosen."""
    splits = {name: [row for row in rows if row["split"] == name] for name in ("report", "search")}
    figures = {}
    for name in ("teacher", "full"):
        values = [row["accuracy_pct"] for row in splits["report"] if row["method"] == name]
        if values:
            figures |= {f"{name}.accuracy_pct.mean": statistics.fmean(values), f"{name}.seeds": len(values)}
    for what, some in (("drop_points", splits["report"]), ("search_drop_points", splits["search"])):
        full = {row["seed"]: row["accuracy_pct"] for row in some if row["method"] == "full"}
        for method, cut in dict.fromkeys((row["method"], row["cut"]) for row in some):
            drops = [
                full[row["seed"]] - row["accuracy_pct"] for row in some
                if (row["method"], row["cut"]) == (method, cut) and row["seed"] in full
            ]  # fmt: skip
            if method in ("teacher", "full") or not drops:
                continue
            key = f"{method}.{cut}.{what}"
            figures |= {f"{key}.mean": statistics.fmean(drops), f"{key}.seeds": len(drops)}
            figures[f"{key}.std"] = statistics.stdev(drops) if len(drops) > 1 else 0.0
    return figures

"""Writes what README.md and docs/ quote of benchmarks/results, tables and the chart: ``python -m benchmarks.pages``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.chart import CHART, deployed_speed_chart
from benchmarks.results import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Figures = dict[str, float]

_MODELS = {"minilm": "MiniLM-L6, 128 tokens", "vit_s16": "ViT-S/16, 224 x 224"}
_DEPLOYMENTS = {
    "ort-fp32": "ONNX Runtime fp32", "ort-int8": "ONNX Runtime int8", "ov-f32": "OpenVINO f32", "ov-bf16": "OpenVINO bf16",
    "ov-int8": "OpenVINO int8",
}  # fmt: skip
_LATENCY_COLUMNS = [
    ("mean error, %", "", "mape_pct", 2), ("largest, %", "", "max_pct", 1), ("Kendall tau", "", "tau", 3),
    ("noise floor, %", "", "noise_floor_pct", 2), ("by MACs, %", "proxy.macs.", "mape_pct", 1),
    ("blocks alone, %", "proxy.blocks.", "mape_pct", 1), ("eager PyTorch, %", "proxy.torch_eager.", "mape_pct", 1),
    ("trees, 100 networks, %", "proxy.lightgbm_100.", "mape_pct", 1),
]  # fmt: skip


def latency_table(figures: Figures) -> str:
    """A row a model and deployment: the table's error, the noise, and what others predict by."""
    lines = ["| model | deployment | " + " | ".join(column[0] for column in _LATENCY_COLUMNS) + " |"]
    lines.append("|---" * (2 + len(_LATENCY_COLUMNS)) + "|")
    for model, model_name in _MODELS.items():
        for deployment, deployment_name in _DEPLOYMENTS.items():
            cells = [
                _number(figures, f"{prefix}{model}.{deployment}.{name}", digits)
                for _, prefix, name, digits in _LATENCY_COLUMNS
            ]
            lines.append(f"| {model_name} | {deployment_name} | {' | '.join(cells)} |")
    return "\n".join(lines)


_CUTS = {"25": "25.6", "42": "42.6", "53": "53.6", "60": "60", "70": "70"}
_TRAININGS = [
    ("`best`", "best", "drop_points"), ("the paper's recipe", "paper", "drop_points"),
    ("pruned and distilled alone", "prune_distil", "drop_points"),
]  # fmt: skip
_AT_RANDOM = [
    ("`best`, 12 at random", "best", "search_drop_points"), ("the paper's, 12 at random", "paper", "search_drop_points"),
    ("pruned and distilled alone, again", "prune_distil", "search_drop_points"),
]  # fmt: skip
_BEIT3_CUTS = {"10": "10", "17": "17", "21": "21.7"}
_SHALLOWER = ("`best`, of 6 to 8 layers", "layers_9_to_12", "drop_points")
_RESNET_CUTS = {"25": "25", "50": "50", "70": "70"}
_TUNED = ("`best`, its winner tuned alone for an epoch", "best_tuned", "drop_points")


def points_lost(cuts: Mapping[str, str], columns: Sequence[tuple[str, str, str]]) -> Callable[[Figures], str]:
    """What makes a table of a row a cut: the points lost by each method, mean and spread over seeds.

    Args:
        cuts: as they are shown, by their name in the figures.
        columns: of each its head, the method, and which loss.
    """

    def table(figures: Figures) -> str:
        lines = [f"| multiply-accumulates cut, % | {' | '.join(name for name, _, _ in columns)} |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for cut, shown in cuts.items():
            keys = [f"{method}.{cut}.{what}" for _, method, what in columns]
            lines.append(f"| {shown} | {' | '.join(_mean_and_spread(figures, key) for key in keys)} |")
        return "\n".join(lines)

    return table


def _mean_and_spread(figures: Figures, key: str) -> str:
    """Over seeds; of one seed there is no spread."""
    if f"{key}.mean" not in figures:
        return "-"
    spread = f" ± {figures[f'{key}.std']:.2f}" if figures[f"{key}.seeds"] > 1 else ""
    return f"{figures[f'{key}.mean']:.2f}{spread}"


_LOWERED = {
    "minilm": "MiniLM-L6, 128 tokens", "minilm_sub": "a sub-network of it", "vit_sub": "a sub-network of a small ViT",
}  # fmt: skip
_LOWERED_FOR = {
    "ort-fp32-1t": "ONNX Runtime fp32", "ort-int8-1t": "ONNX Runtime int8", "ov-fp32-1t": "OpenVINO fp32",
    "ov-int8-1t": "OpenVINO int8",
}  # fmt: skip
_WAYS = {
    "opset 17": "17.plain.any", "18": "18.plain.any", "20": "20.plain.any", "23": "23.plain.any", "17, fused": "17.fused.any",
    "23, fused": "23.fused.any", "23, fixed sizes": "23.plain.fixed",
}  # fmt: skip


def lowering(figures: Figures) -> str:
    """A row a network and deployment: latency by each way of lowering, as a ratio to the default's."""
    lines = ["| network | deployment | " + " | ".join(_WAYS) + " |", "|---" * (2 + len(_WAYS)) + "|"]
    for network, shown in _LOWERED.items():
        for deployment, name in _LOWERED_FOR.items():
            keys = [f"{network}.{deployment}.{way}" for way in _WAYS.values()]
            cells = [f"{figures[key]:.2f}" if key in figures else "-" for key in keys]
            lines.append(f"| {shown} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


_CHANGES = {
    "without_hidden_states": "without matching hidden states", "without_sorting": "without sorting heads and neurons",
    "without_teacher": "without the teacher", "without_warm_start": "from the pre-trained weights",
    "without_size_power": "sizes drawn alike", "without_layer_order": "dropping the last layers",
    "without_higher_rate": "at a rate of 5e-5", "with_dropout": "with the model's dropout",
    "without_sampling_by_macs": "sub-networks drawn uniformly", "paper": "the paper's recipe",
    "epochs_x2": "twice the epochs", "epochs_x3": "three times the epochs", "teacher_first_epoch": "teacher in the first epoch alone",
    "space_large": "a space of more choices", "space_small": "a space of fewer choices",
    "paper_epochs_x2": "the paper's recipe, twice the epochs", "paper_gamma_off": "the paper's recipe without a teacher",
}  # fmt: skip


def finetune_ablation(figures: Figures) -> str:
    """A row a change of `best`: how many points more its sub-networks lose."""
    columns = [
        f"{cut}.{what}" for what in ("worse_than_best_points", "search_worse_than_best_points") for cut in ("53", "70")
    ]
    lines = [
        "| `best`, but | -53.6%, chosen, report split | -70% | -53.6%, 12 at random, search split | -70% |", "|---" * 5 + "|"
    ]  # fmt: skip
    for method, shown in _CHANGES.items():
        keys = [f"{method}.{column}.mean" for column in columns]
        if any(key in figures for key in keys):
            cells = [f"{figures[key]:+.2f}" if key in figures else "-" for key in keys]
            lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def overview() -> str:
    """A row a result: what it claims, how it was measured, where and when."""
    lines = ["| result | claim | command | machine | commit, date |", "|---" * 5 + "|"]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        machine = found["machine"]
        claim = " ".join(found["claim"].split()).replace("|", "/")
        lines.append(
            f"| `{path.stem}` | {claim} | `{found['command']}` | {machine['cpu_model']}, {machine['logical_cpus']} cores | "
            f"`{found['commit'][:8]}`, {found['date'][:10]} |"
        )
    return "\n".join(lines)


#: The tables by the result that they quote.
TABLES: dict[str, Callable[[Figures], str]] = {
    "latency_table": latency_table, "lowering": lowering, "finetune_ablation_sst2": finetune_ablation,
    "finetune_accuracy_sst2": points_lost(_CUTS, [*_TRAININGS, *_AT_RANDOM]),
    "finetune_accuracy_cifar10": points_lost(_CUTS, [*_TRAININGS, *_AT_RANDOM]),
    "beit3": points_lost(_BEIT3_CUTS, [*_TRAININGS, _SHALLOWER]), "resnet_cifar10": points_lost(_RESNET_CUTS, [*_TRAININGS, _TUNED]),
}  # fmt: skip
OVERVIEW = "overview"


def figures_of(name: str) -> Figures:
    """The figures of a committed result."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"])


def rendered(text: str) -> str:
    """`text` with every table between ``<!-- table NAME -->`` and ``<!-- end NAME -->``, and every number before a
    ``<!-- RESULT:FIGURE:DIGITS -->``, made anew."""

    def table(found: re.Match[str]) -> str:
        name = found[1]
        made = overview() if name == OVERVIEW else TABLES[name](figures_of(name))
        return f"<!-- table {name} -->\n{made}\n<!-- end {name} -->"

    def number(found: re.Match[str]) -> str:
        name, key, digits = found[1], found[2], found[3]
        return f"{figures_of(name)[key]:.{digits}f}<!-- {name}:{key}:{digits} -->"

    text = re.sub(r"<!-- table (\w+) -->\n.*?<!-- end \1 -->", table, text, flags=re.DOTALL)
    return re.sub(r"-?[\d.]+<!-- (\w+):([\w.-]+):(\d) -->", number, text)


def _number(figures: Figures, key: str, digits: int) -> str:
    return f"{figures[key]:.{digits}f}" if key in figures else "not measured"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    CHART.parent.mkdir(exist_ok=True)
    CHART.write_text(deployed_speed_chart(), encoding="utf-8")

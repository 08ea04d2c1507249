"""Claim: a latency table from nine probes and a minute predicts networks that it has not seen within half a percent or
so, closer than what others use, and selections by it keep their budgets.

``python -m benchmarks.latency_table`` (`make bench-setup` first) measures MiniLM-L6 at 128 tokens and ViT-S/16 at 224 x 224 in
five deployments, each with 40 held-out networks, and writes results/latency_table.json. Each measurement is kept in
runs/latency-table, so that it can be run in pieces (``minilm``, ``vit_s16``: measure that model and write nothing; ``report``: measure
nothing and write what there is);
delete that directory to measure anew.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ViTConfig

from benchmarks import recorded_latency
from benchmarks.latency_proxies import block_file, by_blocks, by_line, by_trees, errors, isolated_blocks
from benchmarks.results import write_result
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.torch import export_torch
from instatune_deploy.device.lowering.variants import ONNX, lower
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import measure
from instatune_deploy.elastic.pretrained import load_config, space_for
from instatune_deploy.elastic.probing import probing_supernet, random_model, synthetic_inputs
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.profiling import Prober, describe_table
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable, table_file
from instatune_deploy.values.macs import count_macs
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import write_json

RUN = Path("runs/latency-table")
RECORDS = Path(__file__).parent / "data" / "records"
DEPLOYMENTS = {
    "ort-fp32": Deployment("onnxruntime"),
    "ort-int8": Deployment("onnxruntime", "int8", needs=("avx512_vnni",)),
    "ov-f32": Deployment("openvino"),
    "ov-bf16": Deployment("openvino", "bf16", needs=("avx512_bf16",)),
    "ov-int8": Deployment("openvino", "int8", needs=("avx512_vnni",)),
}
TARGET = Target("cpu-avx512", "benchmark", "cpu", tuple(DEPLOYMENTS.values()))
HELDOUT, TRAINING, SEED = 40, (10, 50, 100), 0
PROXY_SECONDS = 30.0
#: Of measuring a deployment's probes at most.
SECONDS = 60
Report = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model under measurement: random weights, for none of this depends on them."""

    name: str
    model: PreTrainedModel
    space: SearchSpace
    prober: Prober

    @property
    def is_image(self) -> bool:
        return bool(self.model.config.model_type == "vit")


def subjects(report: Report) -> list[Subject]:
    """MiniLM-L6 at 128 tokens and ViT-S/16 at 224 x 224, each with the paper's space scaled to it."""
    configs = {
        "minilm": load_config("benchmarks/models/minilm-l6"),
        "vit_s16": ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    }
    found = []
    for name, config in configs.items():
        torch.manual_seed(SEED)
        model, space = random_model(config), space_for(config, "paper")
        found.append(Subject(name, model, space, Prober(model, space, 128, RUN / "probes" / name, report, seed=SEED)))
    return found


class NotMeasuredError(Exception):
    """Something was not measured, and is not to be measured now."""


#: ``report`` writes what has been measured so far and measures nothing.
MEASURES = "report" not in sys.argv[1:]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, from the file where an earlier run left it.

    Raises:
        NotMeasuredError: there is none, and nothing is to be measured.
    """
    if not path.is_file():
        if not MEASURES:
            raise NotMeasuredError(path.stem)
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def table_of(subject: Subject, deployment: Deployment, report: Report) -> LatencyTable:
    """The table with its 40 held-out networks, measured now or before."""
    shape, settings = (
        subject.prober.shape,
        ProfileSection(heldout=HELDOUT, seconds=SECONDS, wait_seconds=5),
    )
    path = RUN / "tables" / table_file(TARGET.name, shape.signature, deployment)
    if not path.is_file():
        if not MEASURES:
            raise NotMeasuredError(path.stem)
        subject.prober.table(TARGET, deployment, settings, RUN / "tables", seed=SEED)
    table = LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path))
    report(describe_table(table))
    return table


def eager_ms(subject: Subject, wanted: list[Architecture], report: Report) -> dict[str, float]:
    """Latency of eager PyTorch in fp32 by architecture."""
    directory = RUN / "eager" / subject.name
    build = probing_supernet(subject.model, subject.space).extract
    example = {k: torch.from_numpy(v) for k, v in synthetic_inputs(subject.model.config, 128, 2, seed=SEED).items()}
    files = {}
    for number, architecture in enumerate(wanted):
        files[str(architecture)] = directory / str(number) / "model_fp32.pt2"
        if not files[str(architecture)].is_file():
            export_torch(build(architecture), example, files[str(architecture)], precision="fp32")
    report(f"{subject.name}: measuring eager PyTorch on {len(files)} networks")
    deployment = Deployment("torch")
    settings = TimingSettings(seconds=2 * PROXY_SECONDS, sessions=1)
    found = measure(files, subject.prober.inputs(deployment), deployment, seed=SEED, settings=settings).samples
    shutil.rmtree(directory)  # gigabytes
    return {name: sample.label_ms for name, sample in found.items()}


def blocks_ms(subject: Subject, deployment: Deployment) -> dict[str, float]:
    """Latency of every block alone, in ms."""
    rng = np.random.default_rng(SEED)
    tokens = subject.prober.shape.tokens
    hidden = rng.standard_normal((1, tokens, subject.prober.shape.hidden), dtype=np.float32)
    whole = subject.prober.inputs(deployment)
    directory, files = RUN / "blocks" / subject.name, {}
    for name, block in isolated_blocks(subject.model, subject.space).items():
        inputs = whole if name == "fixed" else {"hidden": hidden}
        files[name] = block_file(name, block, inputs, deployment, directory, image=subject.is_image)
    settings = TimingSettings(seconds=PROXY_SECONDS / 2, sessions=3)
    found = measure(files, {**whole, "hidden": hidden}, deployment, seed=SEED, settings=settings).samples
    return {name: sample.label_ms for name, sample in found.items()}


def training_ms(subject: Subject, deployment: Deployment, table: LatencyTable) -> dict[str, float]:
    """Latency of 100 random networks that are neither probes nor held out, for the trees to learn from.

    The table's probes are measured in the same rounds: what the machine's speed changed since then is taken out.
    """
    probes = [sample.architecture for sample in table.samples]
    taken = {*probes, *(sample.architecture for sample in table.heldout)}
    drawn = [a for a in subject.space.sample(max(TRAINING) + len(taken), seed=SEED + 1) if str(a) not in taken]
    networks = [*drawn[: max(TRAINING)], *(Architecture.parse(text) for text in probes)]
    files = {str(a): subject.prober.files.path(a, deployment) for a in networks}
    settings = TimingSettings(seconds=PROXY_SECONDS, min_rounds=2, sessions=1)
    found = measure(files, subject.prober.inputs(deployment), deployment, seed=SEED, settings=settings).samples
    speed = statistics.median(sample.label_ms / found[sample.architecture].label_ms for sample in table.samples)
    return {str(a): speed * found[str(a)].label_ms for a in networks[: max(TRAINING)]}


def compare(subject: Subject, key: str, eager: dict[str, float] | None, report: Report) -> list[dict[str, Any]]:
    """A row for our table and for each proxy, all judged on the same held-out networks' same labels."""
    deployment = DEPLOYMENTS[key]
    table = table_of(subject, deployment, report)
    place = RUN / "proxies" / f"{subject.name}-{key}"
    probes, labels = [s.architecture for s in table.samples], [s.label_ms for s in table.samples]
    held = [Architecture.parse(sample.architecture) for sample in table.heldout]
    truth = [sample.label_ms for sample in table.heldout]
    macs = {str(a): float(count_macs(subject.prober.shape, a)) for a in (*held, *map(Architecture.parse, probes))}
    estimates = {"macs": by_line([macs[p] for p in probes], labels, [macs[str(a)] for a in held])}
    if eager is not None:
        estimates["torch_eager"] = by_line([eager[p] for p in probes], labels, [eager[str(a)] for a in held])
    with contextlib.suppress(NotMeasuredError):
        estimates["blocks"] = by_blocks(
            kept(place.with_suffix(".blocks.json"), lambda: blocks_ms(subject, deployment)), held
        )
    with contextlib.suppress(NotMeasuredError):
        trained = kept(place.with_suffix(".training.json"), lambda: training_ms(subject, deployment, table))
        known = {Architecture.parse(text): value for text, value in trained.items()}
        for n in TRAINING:
            estimates[f"lightgbm_{n}"] = by_trees(subject.space, dict(list(known.items())[:n]), held, seed=SEED)
    shared = {"model": subject.name, "deployment": key, "seed": SEED, "n": len(held), "split": "held-out networks"}
    ours = {
        "mape_pct": table.error.mape_pct, "max_pct": table.error.max_pct, "tau": table.error.kendall_tau,
        "noise_floor_pct": table.error.noise_floor_pct, "probes": len(probes), "measure_s": table.measure_s,
        "within_2_pct": 100 * float(np.mean([abs(table.estimate_ms(a) / t - 1) <= 0.02 for a, t in zip(held, truth, strict=True)])),
        "heldout_s": table.heldout_s, "interval_pct": table.interval_pct, "fit": table.fit,
        "probe_interval_pct": statistics.fmean(s.interval_pct or 0.0 for s in table.samples),
        "heldout_interval_pct": statistics.fmean(s.interval_pct or 0.0 for s in table.heldout),
        "disturbance": asdict(table.disturbance), "date": table.date,
    }  # fmt: skip
    report(
        f"{subject.name} {key}: " + ", ".join(f"{k} {errors(v, truth)['mape_pct']:.2f}%" for k, v in estimates.items())
    )
    return [
        {"what": "table", **shared, **ours},
        *({"what": f"proxy.{name}", **shared, **errors(values, truth)} for name, values in estimates.items()),
    ]


def budgets(subject: Subject, tables: dict[str, LatencyTable], report: Report) -> dict[str, Any]:
    """Twenty random feasible budgets: the largest network whose interval is within each is exported for real and measured.

    The tables' probes are measured in the same rounds, so that it shows how fast the machine was just then.
    """
    rng = random.Random(SEED)
    pool = subject.space.sample(3000, seed=SEED + 2)
    build = probing_supernet(subject.model, subject.space).extract
    inputs = synthetic_inputs(subject.model.config, 128, 2, seed=SEED)
    example = {k: torch.from_numpy(v) for k, v in inputs.items()}
    chosen: list[tuple[str, Architecture, float, float]] = []
    for number in range(20):
        key = list(tables)[number % len(tables)]
        highest = {a: tables[key].estimate(a, "p50").high_ms for a in pool}
        budget_ms = rng.uniform(min(highest.values()), max(highest.values()))
        best = max((a for a in pool if highest[a] <= budget_ms), key=lambda a: count_macs(subject.prober.shape, a))
        chosen.append((key, best, budget_ms, tables[key].estimate_ms(best, "p50")))
    rows = []
    for key, table in tables.items():
        deployment, files = DEPLOYMENTS[key], {}
        mine = [(n, c) for n, c in enumerate(chosen) if c[0] == key]
        for number, (_, architecture, _, _) in mine:
            folder = RUN / "budgets" / str(number)
            export_onnx(build(architecture), example, folder / ONNX)
            file = get_runtime(deployment.runtime).model_file(deployment)
            files[f"artifact {number}"] = lower(folder, file, [inputs], image=subject.is_image)
        for sample in table.samples:
            architecture = Architecture.parse(sample.architecture)
            files[sample.architecture] = subject.prober.files.path(architecture, deployment)
        report(f"budgets: measuring {len(mine)} exported files on {deployment.name}")
        settings = TimingSettings(seconds=PROXY_SECONDS, wait_s=5)
        found = measure(files, subject.prober.inputs(deployment), deployment, seed=SEED, settings=settings).samples
        speed = statistics.median(found[s.architecture].p50_ms / s.p50_ms for s in table.samples)
        for number, (_, architecture, budget_ms, predicted_ms) in mine:
            sample = found[f"artifact {number}"]
            rows.append(
                {
                    "what": "budget", "model": subject.name, "deployment": key, "seed": SEED, "n": sample.n,
                    "architecture": str(architecture), "budget_ms": budget_ms, "predicted_p50_ms": predicted_ms,
                    "measured_p50_ms": sample.p50_ms, "slower_than_at_table_pct": 100 * (speed - 1),
                    "kept": sample.p50_ms <= 1.01 * budget_ms,
                    "kept_at_table_speed": sample.p50_ms / speed <= 1.01 * budget_ms,
                }
            )  # fmt: skip
    return {"rows": rows}


def probe_seconds(subject: Subject) -> dict[str, Any]:
    """Seconds to make the nine probes' files of all deployments in an empty directory."""
    directory = RUN / "probe-files"
    shutil.rmtree(directory, ignore_errors=True)
    prober = Prober(subject.model, subject.space, 128, directory, print, seed=SEED)
    probes = prober.plan(ProfileSection(), seed=SEED).probes
    start = time.monotonic()
    for deployment in DEPLOYMENTS.values():
        for architecture in probes:
            prober.files.path(architecture, deployment)
    seconds = time.monotonic() - start
    shutil.rmtree(directory)
    return {"what": "probe files", "model": subject.name, "n": len(probes), "seconds": seconds}


def main(names: list[str]) -> int:
    quiet_libraries()
    report = progress()
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    every = subjects(report)
    for subject in every:
        if MEASURES and names and subject.name not in names:
            continue
        made = kept(RUN / f"{subject.name}.probe-files.json", lambda s=subject: probe_seconds(s))
        figures[f"{subject.name}.probe_files_s"] = made["seconds"]
        rows.append(made)
        # Ours first, all in a row: the tables' machine should be one machine.
        tables = {}
        for key, deployment in DEPLOYMENTS.items():
            with contextlib.suppress(NotMeasuredError):
                tables[key] = table_of(subject, deployment, report)
        if not tables:
            continue
        if subject is every[0]:
            found = kept(RUN / "budgets.json", lambda s=subject, t=tables: budgets(s, t, report))["rows"]
            rows += found
            figures["budget.kept_of_20"] = sum(row["kept"] for row in found)
            figures["budget.kept_of_20_at_table_speed"] = sum(row["kept_at_table_speed"] for row in found)
        wanted = [
            Architecture.parse(s.architecture) for t in [next(iter(tables.values()))] for s in (*t.samples, *t.heldout)
        ]
        eager = None
        with contextlib.suppress(NotMeasuredError):
            eager = kept(RUN / f"{subject.name}.eager.json", lambda s=subject, w=wanted: eager_ms(s, w, report))
        for key in tables:
            for row in compare(subject, key, eager, report):
                rows.append(row)
                prefix = "" if row["what"] == "table" else f"{row['what']}."
                quoted = ["mape_pct", "max_pct", "tau"]
                quoted += ["noise_floor_pct", "probes", "measure_s", "within_2_pct"] if not prefix else []
                figures.update({f"{prefix}{subject.name}.{key}.{name}": row[name] for name in quoted})
        if MEASURES:
            shutil.rmtree(RUN / "probes" / subject.name, ignore_errors=True)
    if MEASURES and names:
        return 0
    for path in sorted(RECORDS.glob("hat_*.csv")):
        found = recorded_latency.evaluate(path, train=100)
        rows += [{"what": "recorded", "split": "held-out rows", "n": row["n_heldout"], **row} for row in found]
        device = path.stem.removeprefix("hat_").removesuffix("_all")
        for name in ("mape_pct", "median_ape_pct", "steady_mape_pct", "kendall_tau", "lightgbm_mape_pct"):
            figures[f"recorded.{device}.{name}"] = statistics.median(row[name] for row in found)
    claim = (
        "On MiniLM-L6 (128 tokens, one thread) a table fitted to nine probes in about a minute a deployment predicts 40 networks that "
        "no fit has seen more closely than MACs, sums of isolated blocks, eager PyTorch or trees fitted to 100 networks do; on ViT-S/16 "
        "(224 x 224), whose paper space holds networks of like size alone, it errs by less than the noise of a comparison, as MACs do; "
        "and networks selected by it keep their budgets."
    )
    path = write_result("latency_table", claim, figures, rows)
    print(f"{path}\n{json.dumps(figures, indent=1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

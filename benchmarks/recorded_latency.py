"""How well latencies of recorded devices are predicted from a few measured networks.

Each file holds 2,000 encoder-decoder transformers with their latency on one device, measured one after the other by
the authors of HAT (arXiv 2005.14187). Some are used to fit, all others are predicted.

    python -m benchmarks.recorded_latency [FILE.csv ...]
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from scipy.stats import kendalltau

from instatune_deploy.stages.profile.fit import FIXED, fit_latency

RECORDS = Path(__file__).parent / "data" / "records"
TRAIN = (10, 50, 100)
SEEDS = range(20)
#: A row is steady where the median over so many rows before and after it is off by at most so much.
NEIGHBOURS, STEADY = 15, 0.05
LABELS = ("latency_mean_encoder", "latency_mean_decoder")

Frame = Mapping[str, np.ndarray]


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a recording by name, each of shape ``(n,)``, in the order in which they were measured."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, np.array(rows, dtype=float).T, strict=True))


def features(frame: Frame) -> tuple[np.ndarray, list[str]]:
    """What the additive model sees of each network, shape ``(n, 8)``, and the names.

    Recorded are averages over layers; what costs time is their sum, here layers times average. The decoder runs once a
    token, so its parts count; the encoder runs once, and of its six layers, always six, only the MLPs differ much.
    """
    embed, layers = frame["decoder_embed_dim"], frame["decoder_layer_num"]
    columns = {
        "decoder_layers": layers,
        "decoder_projections": layers * embed,
        "decoder_ffn": layers * embed * frame["decoder_ffn_embed_dim_avg"],
        "decoder_self_heads": layers * frame["decoder_self_attention_heads_avg"],
        "decoder_cross_heads": layers * frame["decoder_ende_attention_heads_avg"],
        "decoder_cross_keys": layers * frame["decoder_arbitrary_ende_attn_avg"] * frame["encoder_embed_dim"],
        "output_projection": embed,
        "encoder_ffn": frame["encoder_layer_num"] * frame["encoder_embed_dim"] * frame["encoder_ffn_embed_dim_avg"],
    }
    return np.column_stack(list(columns.values())), list(columns)


def labels_ms(frame: Frame) -> np.ndarray:
    """Encoder and decoder together, as HAT's own predictor has it, shape ``(n,)``."""
    return np.asarray(frame[LABELS[0]] + frame[LABELS[1]])


def steady_rows(frame: Frame) -> np.ndarray:
    """Which rows were measured while the device was as fast as it mostly was, shape ``(n,)``, bool.

    Rows are in the order of measurement, and some devices were a quarter slower for hundreds of them. As a round is
    run again when the anchor drifts, so a row is left out when its neighbours in time drift. Its own error plays no
    part. The networks differ, so what drifts is label over estimate, by a fit to the whole recording.
    """
    matrix, names = features(frame)
    labels = labels_ms(frame)
    ratios = labels / fit_latency(matrix, names, labels, seed=0).estimate_all_ms(matrix)
    around = np.array(
        [
            np.median(np.delete(ratios[max(0, row - NEIGHBOURS) : row + NEIGHBOURS + 1], min(row, NEIGHBOURS)))
            for row in range(len(ratios))
        ]
    )
    return np.asarray(np.abs(around / np.median(around) - 1) <= STEADY)


def evaluate(csv_path: Path, *, train: int = 100, seeds: Iterable[int] = SEEDS) -> list[dict[str, Any]]:
    """Fit `train` random rows of a recording and predict all others, once a seed.

    Returns:
        A row a seed. `mape_pct`, `median_ape_pct` and `kendall_tau` are over all `n_heldout` rows, those that begin
        with `steady_` over the `n_steady` of them that `steady_rows` keeps, those that begin with `lightgbm_` those of
        trees alone on the recorded columns. Training rows are never screened.
    """
    frame = read(csv_path)
    (matrix, names), labels, steady = features(frame), labels_ms(frame), steady_rows(frame)
    raw = np.column_stack([column for name, column in frame.items() if not name.startswith("latency_")])
    rows = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(labels))
        seen, held = order[:train], order[train:]
        quiet = held[steady[held]]
        fit = fit_latency(matrix[seen], names, labels[seen], seed=seed)
        alone = _lightgbm_alone(raw[seen], labels[seen], raw, seed=seed)
        rows.append(
            {
                "file": csv_path.name,
                "seed": seed,
                "n_train": train,
                "n_heldout": len(held),
                **_errors(fit.estimate_all_ms(matrix[held]), labels[held]),
                "n_steady": len(quiet),
                **{f"steady_{k}": v for k, v in _errors(fit.estimate_all_ms(matrix[quiet]), labels[quiet]).items()},
                **{f"lightgbm_{k}": v for k, v in _errors(alone[held], labels[held]).items()},
                "model": fit.method + (" + trees" if fit.trees else ""),
                "decision": fit.decision,
                "fixed_ms": fit.linear[FIXED],
            }
        )
    return rows


def _errors(estimates: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    errors = 100 * np.abs(estimates / labels - 1)
    tau = float(kendalltau(estimates, labels).statistic)
    return {
        "mape_pct": float(errors.mean()),
        "median_ape_pct": float(np.median(errors)),
        "kendall_tau": 0.0 if np.isnan(tau) else tau,  # equal estimates rank nothing
    }


def _lightgbm_alone(seen: np.ndarray, labels: np.ndarray, wanted: np.ndarray, *, seed: int) -> np.ndarray:
    """The usual way: trees on the recorded columns, of the logarithm, with leaves as small as few samples need."""
    parameters = {
        "objective": "regression",
        "learning_rate": 0.05,
        "num_leaves": 8,
        "min_data_in_leaf": max(2, len(seen) // 20),
        "min_data_in_bin": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }
    booster = lightgbm.train(parameters, lightgbm.Dataset(seen, np.log(labels), params=parameters), 200)
    return np.asarray(np.exp(booster.predict(wanted, num_threads=1)))


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments] or sorted(RECORDS.glob("hat_*.csv"))
    if not paths:
        print(f"no recordings in {RECORDS}: run make bench-setup or name some", file=sys.stderr)
        return 2
    kinds = ("mape_pct", "median_ape_pct", "kendall_tau")
    shown = [f"{rows}{kind}" for rows in ("", "steady_", "lightgbm_") for kind in kinds]
    print(f"medians over {len(SEEDS)} seeds\n| file | n_train | {' | '.join(shown)} | with trees |")
    print(f"|---|{'---:|' * (len(shown) + 2)}")
    for path in paths:
        for train in TRAIN:
            rows = evaluate(path, train=train)
            medians = " | ".join(f"{statistics.median(row[name] for row in rows):.3f}" for name in shown)
            with_trees = sum("trees" in row["model"] for row in rows)
            print(f"| {path.name} | {train} | {medians} | {with_trees}/{len(rows)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

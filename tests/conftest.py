"""What several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Disturbance, HeldOutError, LatencyTable, Machine
from instatune_deploy.values.space import SearchSpace

# The same examples in every run: a law that fails here fails everywhere.
settings.register_profile("laws", deadline=None, derandomize=True)
settings.load_profile("laws")


def build_table(space: SearchSpace, deployment: Deployment | None = None, ms: float = 1.0) -> LatencyTable:
    """A table that covers `space`: `ms` for 12 heads or 1,024 neurons, in proportion for others, 4 `ms` for the rest."""
    return LatencyTable(
        target="cpu-test",
        deployment=deployment or Deployment("onnxruntime"),
        signature="bert-h64-d16-4x4x256-t8",
        fixed_ms=4 * ms,
        layer_ms={
            **{f"heads={heads}": ms * heads / 12 for heads in space.head_choices},
            **{f"ffn={ffn}": ms * ffn / 1024 for ffn in space.ffn_choices},
        },
        switch_ms=0.0,
        percentile_ratio={"p50": 1.0, "p90": 1.25, "p99": 1.5},
        interval_pct={"label": 2.0, "p50": 3.0, "p90": 6.0, "p99": 20.0},
        trees=(),
        fit="by hand",
        samples=(),
        heldout=(),
        error=HeldOutError(1.0, 2.0, 100.0, 0.98, 0.5, 8),
        machine=Machine("cpu", "x86_64", 2, ("avx2",), 2**33, 0.1),
        versions={"onnxruntime": "1.22.0", "openvino": "2025.3.0"},
        date="2025-01-01T00:00:00Z",
        measure_s=12.5,
        disturbance=Disturbance(0.0, 0.0, 0.0, 0.0, 0.0),
        options={"threads": "1"},
        settings={"rounds": 6.0},
        heldout_s=3.0,
        raw_sha256=None,
    )


@pytest.fixture(scope="session")
def make_table() -> Callable[..., LatencyTable]:
    """`build_table`, for tests in any folder."""
    return build_table

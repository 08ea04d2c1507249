"""Work on a Ray cluster: two nodes on this machine, with a CPU each; one of them offers a target."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from instatune_deploy.data.dataset import TaskData
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import detect
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import MeasurementError, UsageError
from instatune_deploy.stages import evaluate
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.evaluate.runs import Compute
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.space import Architecture
from tests.helpers import call_main, copy_unsearched, make_family, make_text_task, write_project

try:
    import ray
    from ray.cluster_utils import Cluster as LocalNodes

    from instatune_deploy import cluster
    from instatune_deploy.cluster import ENVIRONMENT, connect, evaluating
    from instatune_deploy.cluster.network import Network
except ImportError:
    pytest.skip("the extra ray is not installed", allow_module_level=True)

#: What makes a job short, and its evaluations independent of latencies.
SHORT = {
    "finetune": {"teacher": {"epochs": 1, "learning_rate": 3.0e-3}, "epochs": 1, "learning_rate": 2.0e-3, "importance_rows": 32},
    "search": {
        "objectives": ["metric", "macs"], "warm_start": 8, "rounds": 1, "batch": 2, "population": 20, "generations": 5,
        "deployed": 2,
    },
    "profile": {"heldout": 2, "seconds": 0.3, "confirm_seconds": 0.3, "wait_seconds": 0},
    "targets": {"cpu-test": ["macs<=60%"]},
}  # fmt: skip


@dataclass
class Nodes:
    """The cluster's address, the number of the node that offers cpu-test, and that node's folder for what it keeps."""

    address: str
    offering: str
    cache: Path


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    # What is defined here goes to the nodes by value: they need not find the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield from started(cache)


def started(cache: Path) -> Iterator[Nodes]:
    found = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        offering = found.add_node(
            num_cpus=1, resources={"cpu-test": 1}, env_vars={**os.environ, "XDG_CACHE_HOME": str(cache)}
        )
        found.wait_for_nodes()
        yield Nodes(found.address, offering.node_id, cache)
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, TaskData, Processor]:
    return make_text_task(tmp_path_factory.mktemp("cluster"))


def evaluated(
    prepared: tuple, path: Path, wanted: list[Architecture], compute: Compute | None, **options: Any
) -> list[Any]:
    supernet, data, processor = prepared
    evaluator = Evaluator(
        supernet, data.search, processor, metric="accuracy", path=path, beside=supernet.full, batch_size=8,
        compute=compute, **options,
    )  # fmt: skip
    return evaluator(wanted)


@dataclass(frozen=True)
class Ill(Network):
    """A network that does something when a worker runs one of its sub-networks."""

    bad: Architecture | None = None
    act: Callable[[], None] = lambda: None

    def build(self) -> Supernet:
        supernet = super().build()
        kept = supernet.kept

        def watched(architecture: Architecture) -> Any:
            if architecture == self.bad:
                self.act()
            return kept(architecture)

        supernet.kept = watched  # type: ignore[method-assign]
        return supernet


def ill(monkeypatch: pytest.MonkeyPatch, bad: Architecture, act: Callable[[], None]) -> None:
    """From now on workers that run `bad` do `act` first."""

    def of(supernet: Supernet) -> Network:
        well = Network.of(supernet)
        return Ill(well.model_class, well.config, well.space, well.weights, well.calibration, bad, act)

    monkeypatch.setattr(evaluating, "Network", type("", (), {"of": staticmethod(of)}))


def test_a_cluster_writes_the_same_file_as_this_machine(prepared: tuple, nodes: Nodes, tmp_path: Path) -> None:
    supernet, data, _ = prepared
    wanted = supernet.space.sample(30, seed=1)
    lines: list[str] = []
    compute = connect(nodes.address, lines.append).compute(supernet, data.search.head.outputs)
    assert lines == ["Ray cluster of 2 nodes with 2 CPUs; targets offered: cpu-test"]
    here = evaluated(prepared, tmp_path / "here.jsonl", wanted, None)
    there = evaluated(prepared, tmp_path / "there.jsonl", wanted, compute)
    assert there == here
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert len(lines) == 1  # nothing went wrong


def test_a_killed_worker_loses_no_evaluation_and_a_stopped_driver_goes_on(
    prepared: tuple, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 5)
    monkeypatch.setattr(evaluate, "REPORT_EVERY_S", 0.0)
    supernet, data, _ = prepared
    wanted = supernet.space.sample(12, seed=2)
    here = evaluated(prepared, tmp_path / "here.jsonl", wanted, None)
    once = tmp_path / "killed"

    def die() -> None:
        if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    lines: list[str] = []
    ill(monkeypatch, wanted[3], die)
    compute = connect(nodes.address, lines.append).compute(supernet, data.search.head.outputs)

    def stop(line: str) -> None:
        if line.startswith("6 sub-networks"):
            raise KeyboardInterrupt

    evaluator = Evaluator(
        supernet, data.search, prepared[2], metric="accuracy", path=tmp_path / "there.jsonl", beside=supernet.full,
        batch_size=8, compute=compute,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        evaluator(wanted, report=stop)
    assert len((tmp_path / "there.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    assert evaluated(prepared, tmp_path / "there.jsonl", wanted, compute) == here
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert once.exists()
    (said,) = lines[1:]
    assert "evaluating 5 sub-networks on a part of the samples: its worker was lost (WorkerCrashedError" in said
    assert said.endswith("try 2 of 3 follows")


def test_what_fails_three_times_is_named_and_the_others_are_kept(
    prepared: tuple, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet, data, _ = prepared
    wanted = supernet.space.sample(6, seed=3)
    tries = tmp_path / "tries"

    def fail() -> None:
        with tries.open("a", encoding="utf-8") as file:
            file.write("x")
        raise ArithmeticError("poison")

    ill(monkeypatch, wanted[2], fail)
    lines: list[str] = []
    compute = connect(nodes.address, lines.append).compute(supernet, data.search.head.outputs)
    found = evaluated(prepared, tmp_path / "there.jsonl", wanted, compute, report=lines.append)
    others = [architecture for architecture in wanted if architecture != wanted[2]]
    assert [evaluation.architecture for evaluation in found] == others
    here = evaluated(prepared, tmp_path / "here.jsonl", others, None)
    assert [evaluation.value for evaluation in found] == [evaluation.value for evaluation in here]
    reason = "ArithmeticError: poison"
    assert f"evaluating {wanted[2]} on a part of the samples: {reason}; try 3 of 3 follows" in lines
    assert f"{wanted[2]} was not evaluated: given up after 3 tries: {reason}" in lines
    assert len(tries.read_text(encoding="utf-8")) >= 6  # three times with others, three times alone


def test_where_nothing_can_be_evaluated_it_ends_with_the_reason(
    prepared: tuple, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet, data, _ = prepared

    def fail() -> None:
        raise ArithmeticError("poison")

    ill(monkeypatch, supernet.full, fail)
    compute = connect(nodes.address, lambda line: None).compute(supernet, data.search.head.outputs)
    with pytest.raises(MeasurementError, match="could not be run: given up after 3 tries: ArithmeticError: poison"):
        evaluated(prepared, tmp_path / "there.jsonl", supernet.space.sample(2, seed=4), compute)


def test_batch_norms_are_measured_on_the_same_rows_there() -> None:
    family = make_family("resnet")
    supernet = Supernet(family.model, family.space).eval().calibrate(lambda: [family.inputs])
    again = Network.of(supernet).build()
    for architecture in family.space.sample(3, seed=0):
        ours, theirs = (network(family.inputs, [architecture])[0].logits for network in (supernet, again))
        assert ours.equal(theirs)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    recipe = write_project(tmp_path)
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({**settings, **SHORT}), encoding="utf-8")
    target = tmp_path / "targets" / "cpu-test.yaml"
    deployments = [{"runtime": "onnxruntime"}, {"runtime": "onnxruntime", "precision": "int8"}]
    said = yaml.safe_load(target.read_text(encoding="utf-8"))
    target.write_text(yaml.safe_dump({**said, "deployments": deployments}), encoding="utf-8")
    other = {**said, "name": "cpu-nowhere"}
    (tmp_path / "targets" / "cpu-nowhere.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_measures_on_the_node_that_offers_the_target(
    project: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    code, _, error = call_main(monkeypatch, capsys, "run", "recipe.yaml", "--out", "there", "--ray", nodes.address)
    assert code == 0, error
    # That node, and no other, keeps there what it makes for measuring.
    assert list(nodes.cache.rglob("probes")) != []
    assert list(nodes.cache.rglob("probes/*")) == []
    tables = [LatencyTable.from_json(p.read_text(), str(p)) for p in Path("there/tables").rglob("*t.json")]
    assert sorted(table.deployment.name for table in tables) == ["ort-fp32-1t", "ort-int8-1t"]
    assert {table.machine.cpu_model for table in tables} == {detect().cpu_model}
    # The search on this machine, over the same super-network and tables: the same evaluations, also the quantised ones.
    copy_unsearched(Path("there"), Path("here"))
    code, _, error = call_main(monkeypatch, capsys, "search", "--run", "here")
    assert code == 0, error
    there = Path("there/evaluations.jsonl").read_text(encoding="utf-8")
    assert there == Path("here/evaluations.jsonl").read_text(encoding="utf-8")
    assert '"precision": "ort-int8"' in there
    # Other batches of a target are the business of whoever offers it.
    plan = {"run": "./there", "targets": ["cpu-test"], "budgets": ["macs<=60%"], "batches": [2]}
    Path("fleet.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    code, out, error = call_main(monkeypatch, capsys, "fleet", "fleet.yaml", "--ray", nodes.address, "--json")
    assert code == 0, error
    (cell,) = json.loads(out)["cells"]
    assert (cell["state"], cell["batch"]) == ("measured", 2)


def test_a_target_that_no_node_offers_is_one_line_that_says_what_to_start(
    project: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = call_main(
        monkeypatch, capsys, "profile", "--target", "cpu-nowhere", "--model", "model", "--ray", nodes.address
    )
    assert code == 2
    start = f"ray start --address={nodes.address} --resources='{{\"cpu-nowhere\": 1}}'"
    assert f"no node of the cluster offers target cpu-nowhere: on a machine that serves it, call `{start}`" in error
    assert "offered now: cpu-test" in error


def test_a_cluster_started_for_the_command_offers_what_this_machine_serves(project: Path) -> None:
    offered = cluster._offered_here()
    assert {"cpu-test", "cpu-nowhere"} <= set(offered)
    assert set(offered.values()) == {1}
    assert "cpu-arm-neon" not in offered or "cpu-avx2" not in offered


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "refused"), ("somewhere", "not of the form HOST:PORT")])
def test_where_no_cluster_is_a_line_says_so(address: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # as in a process that has not connected yet
    with pytest.raises(UsageError, match=f"no Ray cluster answers at {address} .*{why}.*ray start --head"):
        connect(address, lambda line: None)


def test_without_the_extra_a_line_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, error = call_main(monkeypatch, capsys, "run", "recipe.yaml", "--ray", "auto")
    assert (code, error) == (2, "error: ray is not installed: pip install 'instatune-deploy[ray]'")

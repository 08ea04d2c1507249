"""Which CPUs threads are pinned to, on machines of several makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from instatune_deploy.device import process, topology
from instatune_deploy.device.process import pinned_cpus
from instatune_deploy.device.topology import Core, pick_cpus, read_cores
from instatune_deploy.values.deployment import Deployment

Write = Callable[[dict[str, object]], None]


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files as of ``/sys/devices``."""

    def write(files: dict[str, object]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    monkeypatch.setattr(topology, "DEVICES", tmp_path)
    return write


def of_cpus(name: str, texts: dict[int, object]) -> dict[str, object]:
    return {f"system/cpu/cpu{cpu}/{name}": text for cpu, text in texts.items()}


def siblings(*cores: tuple[int, ...], name: str = "core_cpus_list") -> dict[str, object]:
    return of_cpus(f"topology/{name}", {cpu: ",".join(map(str, core)) for core in cores for cpu in core})


def picked(cpus: range | list[int], *threads: int) -> list[list[int]]:
    return [pick_cpus(read_cores(cpus), count) for count in threads]


def test_where_nothing_is_said_the_highest_numbered_are_taken(devices: Write) -> None:
    assert read_cores([3, 1]) == [Core((1,)), Core((3,))]
    assert picked(range(4), 1, 2, 4) == [[3], [2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_threads_go_to_cores_of_their_own_whose_threads_are_numbered_in_pairs(devices: Write, name: str) -> None:
    devices(siblings((0, 1), (2, 3), (4, 5), (6, 7), name=name))
    assert picked(range(8), 1, 2, 4) == [[7], [5, 7], [1, 3, 5, 7]]
    # More threads than cores: the second threads of cores, CPU 0 last.
    assert picked(range(8), 5, 7, 8) == [[1, 3, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], list(range(8))]


def test_threads_go_to_cores_of_their_own_whose_second_threads_are_numbered_last(devices: Write) -> None:
    devices(siblings((0, 4), (1, 5), (2, 6), (3, 7)))
    assert picked(range(8), 1, 2, 4) == [[7], [6, 7], [4, 5, 6, 7]]
    assert picked(range(8), 6) == [[2, 3, 4, 5, 6, 7]]


def test_only_allowed_cpus_are_taken(devices: Write) -> None:
    devices(siblings((0, 1), (2, 3), (4, 5), (6, 7)))
    assert picked([0, 2, 3, 4], 1, 2, 3, 4) == [[4], [3, 4], [0, 3, 4], [0, 2, 3, 4]]


@pytest.mark.parametrize("said", ["cpu_atom", "cpufreq/cpuinfo_max_freq", "cpu_capacity"])
def test_performance_cores_come_before_efficiency_cores_and_these_before_second_threads(
    devices: Write, said: str
) -> None:
    # As of an i5-12600K: six cores of two threads, four of one; one of the six is a good sample.
    devices(siblings(*((2 * core, 2 * core + 1) for core in range(6)), *((cpu,) for cpu in range(12, 16))))
    if said == "cpu_atom":
        devices({"cpu_core/cpus": "0-11", "cpu_atom/cpus": "12-15"})
    else:
        devices(of_cpus(said, {**dict.fromkeys(range(12), 4800), **dict.fromkeys((4, 5), 4900)}))
        devices(of_cpus(said, dict.fromkeys(range(12, 16), 3600)))
    assert picked(range(16), 1, 2, 6) == [[11], [9, 11], [1, 3, 5, 7, 9, 11]]
    assert picked(range(16), 7, 10) == [[1, 3, 5, 7, 9, 11, 15], [1, 3, 5, 7, 9, 11, 12, 13, 14, 15]]
    assert picked(range(16), 11) == [[1, 3, 5, 7, 9, 10, 11, 12, 13, 14, 15]]
    assert picked([0, 12, 13], 1, 2) == [[0], [0, 13]]


def test_big_cores_come_before_little_ones_whatever_their_numbers(devices: Write) -> None:
    devices(siblings(*((cpu,) for cpu in range(8))))
    # Two big, two middle, four little; clocks say less than capacities.
    devices(of_cpus("cpu_capacity", {0: 1024, 1: 1024, 2: 870, 3: 870, 4: 340, 5: 340, 6: 340, 7: 340}))
    devices(of_cpus("cpufreq/cpuinfo_max_freq", {cpu: 2_000_000 + cpu for cpu in range(8)}))
    assert picked(range(8), 1, 2, 3, 5) == [[1], [0, 1], [0, 1, 3], [0, 1, 2, 3, 7]]


def test_speeds_that_are_said_of_some_cpus_alone_do_not_count(devices: Write) -> None:
    devices(of_cpus("cpufreq/cpuinfo_max_freq", {0: 5_000_000}))
    assert picked(range(2), 1) == [[1]]


def test_a_measurement_is_pinned_so(devices: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    devices(siblings((0, 1), (2, 3)))
    monkeypatch.setattr(process, "available_cpus", lambda: [0, 1, 2, 3])
    assert pinned_cpus(Deployment("onnxruntime", threads=2)) == [1, 3]

"""`ClusterCompute`: sub-networks run on all CPUs of a cluster, over a super-network that lies once on every node.

The work is divided by rows: a task runs all sub-networks of a chunk on some batches. So they share what they have in common
as on one machine, and their outputs are the same to the bit, however many workers there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from instatune_deploy.cluster import tasks
from instatune_deploy.cluster.network import Network
from instatune_deploy.cluster.nodes import SILENCE_S, TRIES, alive_ids, reason_of, task, worker_count
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import MeasurementError
from instatune_deploy.profiling import Report
from instatune_deploy.stages.evaluate.runs import Batch, Failed, Found
from instatune_deploy.values.space import Architecture

#: Into how many tasks a chunk is divided for each worker: more are more even, fewer share more.
PARTS_A_WORKER = 4
#: Sub-networks that fail before any has been evaluated: then it is not they that are at fault.
MOST_FAILED_FIRST = 3


@dataclass(frozen=True)
class Unit:
    """Some sub-networks of a chunk, by their places in it, on the rows of one part; `tries` is how often it failed."""

    chunk: int
    part: int
    places: tuple[int, ...]
    tries: int = 0


@dataclass
class Chunk:
    """Sub-networks that are run together, what is known of their outputs, and how many units are missing."""

    architectures: Sequence[Architecture]
    missing: int
    #: By place and part.
    found: dict[tuple[int, int], list[Found]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def outputs(self, order: Sequence[Sequence[int]]) -> list[list[Found] | Failed]:
        """What each sub-network put out, batches in their order; `order` are the batches of each part."""
        result: list[list[Found] | Failed] = []
        for place in range(len(self.architectures)):
            if place in self.failed:
                result.append(Failed(self.failed[place]))
                continue
            numbered = [
                pair
                for part, numbers in enumerate(order)
                for pair in zip(numbers, self.found[place, part], strict=True)
            ]
            result.append([found for _, found in sorted(numbered, key=lambda pair: pair[0])])
        return result


class ClusterCompute:
    """A `Compute` on a cluster; see there for what a call gives.

    What fails, or loses its worker, is tried `TRIES` times; after that a chunk's sub-networks are run one by one, and one
    that fails `TRIES` times by itself is given up.

    Args:
        report: is told what is tried again, and why.
    """

    def __init__(self, supernet: Supernet, outputs: Sequence[str], report: Report) -> None:
        self.supernet, self.outputs, self.report = supernet, tuple(outputs), report
        self._network: Any = None
        self._placed: tuple[Sequence[Batch], list[Any], list[Sequence[int]]] | None = None
        self._worked = False
        #: Those that were there when it was looked last.
        self._nodes: set[str] = set()

    def __call__(
        self, chunks: Sequence[Sequence[Architecture]], batches: Sequence[Batch], precision: str
    ) -> Iterator[list[list[Found] | Failed]]:
        if self._network is None:
            self._network = ray.put(Network.of(self.supernet))
        references, order = self._place(batches)
        work = [Chunk(architectures, len(references)) for architectures in chunks]
        waiting = deque(
            Unit(number, part, tuple(range(len(chunk.architectures))))
            for number, chunk in enumerate(work)
            for part in range(len(references))
        )
        running: dict[Any, Unit] = {}
        self._nodes = alive_ids()
        done = 0
        try:
            while done < len(work):
                # For each worker one that runs and one that is ready.
                while waiting and len(running) < 2 * max(1, worker_count()):
                    unit = self._without_failed(work, waiting.popleft())
                    if unit.places:
                        running[self._start(work, unit, references[unit.part], precision)] = unit
                    else:
                        work[unit.chunk].missing -= 1
                if running:
                    ended = self._await(running)
                    if ended is None:
                        waiting.extendleft(reversed(running.values()))
                        running.clear()
                    else:
                        waiting.extendleft(reversed(self._finish(work, running.pop(ended), ended)))
                while done < len(work) and work[done].missing == 0:
                    yield work[done].outputs(order)
                    work[done].found.clear()
                    done += 1
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _await(self, running: Mapping[Any, Unit]) -> Any | None:
        """One of `running` that has ended, as soon as one has. None: a node is gone, and with it perhaps some of them; nobody
        says which, and to run the others twice changes nothing."""
        while True:
            ended, _ = ray.wait(list(running), num_returns=1, timeout=SILENCE_S)
            if ended:
                return ended[0]
            before, self._nodes = self._nodes, alive_ids()
            if gone := before - self._nodes:
                names = ", ".join(sorted(name[:8] for name in gone))
                self.report(f"evaluating: node {names} is gone; what it may have had to do is given to others")
                return None
            if not worker_count():
                self.report("no node of the cluster has a CPU any more: waiting for one")

    def _place(self, batches: Sequence[Batch]) -> tuple[list[Any], list[Sequence[int]]]:
        """The parts of `batches` in the object store, and which batches each has; those of the last call are still there."""
        if self._placed is None or self._placed[0] is not batches:
            count = min(len(batches), PARTS_A_WORKER * max(1, worker_count()))
            # Batches come in the order of their lengths.
            order = [range(part, len(batches), count) for part in range(count)]
            arrays = [
                (numbers, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
                for numbers, inputs in batches
            ]
            first = {name: array[:4] for name, array in arrays[0][1].items()}
            parts = [ray.put((tuple(arrays[number] for number in numbers), first)) for numbers in order]
            self._placed = batches, parts, [*order]
        return self._placed[1], self._placed[2]

    def _start(self, work: Sequence[Chunk], unit: Unit, part: Any, precision: str) -> Any:
        wanted = [work[unit.chunk].architectures[place] for place in unit.places]
        evaluate = task(tasks.evaluate, num_cpus=1, scheduling_strategy="SPREAD")
        return evaluate.remote(self._network.hex(), self._network, wanted, part, precision, self.outputs)

    @staticmethod
    def _without_failed(work: Sequence[Chunk], unit: Unit) -> Unit:
        failed = work[unit.chunk].failed
        return replace(unit, places=tuple(place for place in unit.places if place not in failed))

    def _finish(self, work: Sequence[Chunk], unit: Unit, reference: Any) -> list[Unit]:
        """Take in what a unit gave; returns the units that take its place where it failed.

        Raises:
            MeasurementError: nothing ever worked.
        """
        chunk = work[unit.chunk]
        try:
            found = ray.get(reference)
        except ray.exceptions.RayError as error:
            reason, tries = reason_of(error), unit.tries + 1
            what = str(chunk.architectures[unit.places[0]])
            if len(unit.places) > 1:
                what = f"{len(unit.places)} sub-networks"
            then = f"try {tries + 1} of {TRIES} follows" if tries < TRIES else "they are tried one by one"
            if tries < TRIES or len(unit.places) > 1:
                self.report(f"evaluating {what} on a part of the samples: {reason}; {then}")
            if tries < TRIES:
                return [replace(unit, tries=tries)]
            if len(unit.places) > 1:
                chunk.missing += len(unit.places) - 1
                return [replace(unit, places=(place,), tries=0) for place in unit.places]
            chunk.failed[unit.places[0]] = f"given up after {TRIES} tries: {reason}"
            chunk.missing -= 1
            if not self._worked and sum(len(other.failed) for other in work) >= MOST_FAILED_FIRST:
                raise MeasurementError(f"no worker of the cluster can evaluate: {reason}") from None
            return []
        self._worked = True
        for place, own in zip(unit.places, found, strict=True):
            chunk.found[place, unit.part] = own
        chunk.missing -= 1
        return []

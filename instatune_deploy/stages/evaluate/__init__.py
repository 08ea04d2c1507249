"""Stage 3: the task metric of sub-networks on the search split, without copying a weight.

Sub-networks are evaluated together, so that what they have in common is computed once, and those of which it is soon clear
that they are not wanted may be given up early.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import MeasurementError, UsageError
from instatune_deploy.stages.evaluate.precision import Precision, PrecisionCheck, choose
from instatune_deploy.stages.evaluate.runs import IMAGES_A_BATCH, Batch, Compute, Failed, Found, Runs
from instatune_deploy.values.evaluations import append_evaluations, read_evaluations
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.racing import LOOKS, Dropped, hopeless, stratified_order
from instatune_deploy.values.space import Architecture

#: Between two lines about a long evaluation.
REPORT_EVERY_S = 5.0
#: Sub-networks evaluated together; a stop loses the work on so many at most.
CHUNK = 50

#: Of a divergence: what networks were evaluated together, which a stop and a new start may change, moves later ones.
DIVERGENCE_DIGITS = 5

Report = Callable[[str], None]


@dataclass(frozen=True)
class Race:
    """How a race ended: evaluations on the whole split of those that stayed, and those that were given up before."""

    evaluations: list[Evaluation]
    dropped: list[Dropped]


class Evaluator:
    """Measures sub-networks on one split and remembers what it measured in a file, line by line.

    Args:
        supernet: holds the sub-networks; it is run in evaluation mode.
        split: rows to measure on, encoded once.
        metric: one that fits the task, see `data.metrics`.
        path: JSON lines, one an `Evaluation`. What stands there for deployments in fp32 is not measured again.
        batch_size: images a forward pass; texts go by their tokens.
        precision: ``fp32``; ``bf16``, rows in doubt again in fp32; or ``auto``: what the file was computed in, else bf16
            where `precision.choose` finds it faster and as good.
        beside: the network that the outputs of the others are compared with, for `Evaluation.divergence`; None: with none.
        compute: where sub-networks are run; None: here.
        report: is told which lines of the file are passed over, why values are computed in what they are, and which
            sub-networks could not be evaluated.

    Raises:
        UsageError: `path` holds evaluations of another split, metric or arithmetic, or of a newer version.
    """

    def __init__(
        self, supernet: Supernet, split: Split, processor: Processor, *, metric: str, path: Path, batch_size: int = IMAGES_A_BATCH,
        precision: Precision = "fp32", beside: Architecture | None = None, compute: Compute | None = None,
        report: Report = lambda line: None,
    ) -> None:  # fmt: skip
        self.runs = Runs(supernet, split, processor, batch_size, compute)
        self.split, self.metric, self.path, self.report = split, metric, path, report
        self.beside = beside
        self.known: dict[Architecture, Evaluation] = {}
        self.precision: Precision = precision
        for number, evaluation in read_evaluations(path, report=report).items():
            if evaluation.precision != "fp32":
                continue  # measured on a quantised network, by others
            if evaluation.architecture != supernet.full and evaluation.architecture not in supernet.space:
                report(f"{path}:{number}: passed over, {evaluation.architecture} is not in the space")
                continue
            self._check(evaluation, number)
            self.known[evaluation.architecture] = evaluation

    def _check(self, found: Evaluation, number: int) -> None:
        """Make sure that an evaluation in the file can stand beside those to come.

        Raises:
            UsageError: it cannot.
        """
        if self.precision == "auto":
            self.precision = "bf16" if found.computed_in == "bf16" else "fp32"
        anew = "move it away to evaluate anew"
        if (found.metric, found.split, found.n) != (self.metric, self.split.name, len(self.split)):
            raise UsageError(
                f"{self.path}: holds {found.metric} on {found.n} samples of {found.split} (line {number}), "
                f"not {self.metric} on {len(self.split)} of {self.split.name}; {anew}"
            )
        if found.computed_in != self.precision:
            raise UsageError(
                f"{self.path}: holds values computed in {found.computed_in} (line {number}), not {self.precision}; {anew}"
            )

    def __call__(
        self, architectures: Iterable[Architecture], *, report: Report = lambda line: None
    ) -> list[Evaluation]:
        """An evaluation for each of `architectures`, measured now unless it is known, `CHUNK` at a time.

        One that could not be measured, as may happen on workers elsewhere, has none; why is reported.

        Raises:
            MeasurementError: none could be measured.
        """
        wanted = list(architectures)
        progress = _Progress(report)
        for chunk, outputs in self._run([a for a in wanted if a not in self.known], self._batches):
            self._record(chunk, outputs, progress)
        return self._of(wanted)

    def _of(self, wanted: Sequence[Architecture]) -> list[Evaluation]:
        """What is known of each of `wanted`.

        Raises:
            MeasurementError: nothing of any.
        """
        found = [self.known[architecture] for architecture in wanted if architecture in self.known]
        if wanted and not found:
            raise MeasurementError(f"none of {len(wanted)} sub-networks could be evaluated; see the lines above")
        return found

    def race(
        self, architectures: Iterable[Architecture], *, keep: int | None = None, floor: float | None = None,
        confidence: float = 0.95, seed: int = 0, report: Report = lambda line: None,
    ) -> Race:  # fmt: skip
        """As a call, but those of `architectures` that are hopeless are given up after a part of the samples.

        The others are measured on the whole split and written down like any, with the same values; nothing is written of
        those given up. Where the metric is no share of right samples, all are measured. What is known of `architectures`
        takes part with its value. A race that was stopped may be run again: what it measured is kept, while which of the
        hopeless are given up, and when, may differ.

        Args:
            keep: how many of the best are wanted.
            floor: the least value wanted.
            confidence: with at least this probability a network that is wanted stays, each by itself.
            seed: of the order in which samples are used, which holds each class in proportion.

        Raises:
            UsageError: neither `keep` nor `floor` is given, or a value makes no sense.
        """
        _check_race(keep, floor, confidence)
        wanted = list(dict.fromkeys(architectures))
        running = [a for a in wanted if a not in self.known]
        dropped: list[Dropped] = []
        found: dict[Architecture, list[Found]] = {a: [] for a in running}
        seen, parts = np.empty(0, dtype=np.int64), self._parts(seed)
        for part in parts[:-1]:
            if not running:
                break
            for chunk, outputs in self._run(running, self.runs.batches(part)):
                whole = dict(self._whole(chunk, outputs))
                for architecture in chunk:
                    if architecture in whole:
                        found[architecture] += whole[architecture]
                    else:
                        del found[architecture]
            running = [a for a in running if a in found]
            if not running:
                break
            seen = np.concatenate([seen, part])
            hits = {a: self._hits(found[a], seen) for a in running}
            lost = hopeless(
                np.stack(list(hits.values())), len(self.split), keep=keep, floor=floor,
                known=[self.known[a].value for a in wanted if a in self.known], chance=(1 - confidence) / len(LOOKS),
            )  # fmt: skip
            given_up = [a for a, is_lost in zip(running, lost, strict=True) if is_lost]
            dropped += [Dropped(a, float(hits[a].mean()), len(seen)) for a in given_up]
            running = [a for a in running if a not in given_up]
            report(
                f"{len(seen)} of {len(self.split)} samples: {len(running)} sub-networks stay, {len(dropped)} given up"
            )
        progress, rest = _Progress(report), self._batches if len(parts) == 1 else self.runs.batches(parts[-1])
        for chunk, outputs in self._run(running, rest):
            both = [own if isinstance(own, Failed) else found[a] + own for a, own in zip(chunk, outputs, strict=True)]
            self._record(chunk, both, progress)
        return Race([self.known[a] for a in wanted if a in self.known], dropped)

    @cached_property
    def check(self) -> PrecisionCheck:
        """The arithmetic that values are computed in, chosen when first asked for, and why."""
        found = choose(self.runs, self._batches, self.metric, self.precision)
        if self.precision != "fp32":
            self.report(f"sub-networks are evaluated in {found.chosen.precision}: {found.reason}")
        return found

    @cached_property
    def _batches(self) -> list[Batch]:
        return self.runs.batches()

    @cached_property
    def _reference(self) -> list[Found] | None:
        """What the network beside puts out for the whole split."""
        if self.beside is None:
            return None
        ((found,),) = self.runs.stream([[self.beside]], self._batches, self.check.chosen)
        if isinstance(found, Failed):
            raise MeasurementError(f"{self.beside}, which others are compared with, could not be run: {found.reason}")
        return found

    def _run(
        self, architectures: Sequence[Architecture], batches: Sequence[Batch]
    ) -> Iterator[tuple[list[Architecture], list[list[Found] | Failed]]]:
        """`CHUNK` at a time of those that begin alike, as they share most, with what each puts out."""
        different = list(dict.fromkeys(architectures))
        if len(different) > 1:  # one alone may be a network in the place of a super-network, with nothing to order by
            different.sort(key=self.runs.supernet.kept)
        chunks = [different[start : start + CHUNK] for start in range(0, len(different), CHUNK)]
        if chunks:
            yield from zip(chunks, self.runs.stream(chunks, batches, self.check.chosen), strict=True)

    def _whole(
        self, chunk: Sequence[Architecture], outputs: Sequence[list[Found] | Failed]
    ) -> Iterator[tuple[Architecture, list[Found]]]:
        """The sub-networks of a chunk that have outputs, with them; says why the others have none."""
        for architecture, found in zip(chunk, outputs, strict=True):
            if isinstance(found, Failed):
                self.report(f"{architecture} was not evaluated: {found.reason}")
            else:
                yield architecture, found

    def _record(
        self, chunk: Sequence[Architecture], outputs: Sequence[list[Found] | Failed], progress: _Progress
    ) -> None:
        """Write down the values of sub-networks that have run on the whole split."""
        for architecture, found in self._whole(chunk, outputs):
            value = self.split.score(self.metric, found)
            divergence = None if self._reference is None else self.split.divergence(found, self._reference)
            if divergence is not None:
                divergence = round(divergence, DIVERGENCE_DIGITS)
            evaluation = Evaluation(
                architecture, self.metric, value, self.split.name, len(self.split),
                computed_in=self.check.chosen.precision, divergence=divergence,
            )  # fmt: skip
            append_evaluations(self.path, [evaluation])
            self.known[architecture] = evaluation
            progress.tell(
                f"{len(self.known)} sub-networks evaluated; last: {self.metric} {value:.4f} of {architecture}"
            )

    def _parts(self, seed: int) -> list[np.ndarray]:
        """Numbers of the samples that a race runs on up to each look, and of the rest; all at once where it cannot drop."""
        if self.metric not in self.split.head.shares:
            return [np.arange(len(self.split.rows))]
        order = stratified_order(self.split.labels, seed=seed)
        return [part for part in np.split(order, [int(share * len(order)) for share in LOOKS]) if len(part)]

    def _hits(self, found: Sequence[Found], numbers: np.ndarray) -> np.ndarray:
        """Whether each of the samples with these numbers is right."""
        outputs = {number: own for batch, arrays in found for number, *own in zip(batch.tolist(), *arrays, strict=True)}
        return self.split.head.hits([outputs[number] for number in numbers.tolist()], self.split.labels[numbers])


class _Progress:
    """Reports at most every `REPORT_EVERY_S`."""

    def __init__(self, report: Report) -> None:
        self.report, self.told = report, time.monotonic()

    def tell(self, line: str) -> None:
        if time.monotonic() - self.told >= REPORT_EVERY_S:
            self.told = time.monotonic()
            self.report(line)


def _check_race(keep: int | None, floor: float | None, confidence: float) -> None:
    """Make sure that a race has an aim.

    Raises:
        UsageError: it has none, or one that makes no sense.
    """
    if keep is None and floor is None:
        raise UsageError("a race needs keep, how many of the best are wanted, or floor, the least value wanted")
    if keep is not None and keep < 1:
        raise UsageError(f"a race cannot keep the best {keep}; keep at least 1")
    if floor is not None and not 0 <= floor <= 1:
        raise UsageError(f"floor {floor} is no share of samples; give a fraction of 0..1")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is no probability between 0 and 1")

"""`Batcher`: requests that wait are joined to one call of the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from mlserver.errors import InferenceError, MLServerError

from instatune_deploy.device.runtimes.base import Session

#: Rows that may wait; further requests are refused with 429.
MAX_WAITING = 1024

Outputs = tuple[np.ndarray, ...]


@dataclass(eq=False)
class _Waiting:
    """Rows of a request: for which member, since when (seconds of the loop's clock), and what is told of their outputs.

    `length` is that of their texts in tokens, 0 where there are none.
    """

    member: str
    inputs: dict[str, np.ndarray]
    since: float
    outputs: asyncio.Future[Outputs]
    rows: int = field(init=False)
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(next(iter(self.inputs.values())))
        # Texts are matrices; images have no length that differs.
        self.length = max((array.shape[1] for array in self.inputs.values() if array.ndim == 2), default=0)


class Batcher:
    """Runs the rows of many requests in as few calls as it can.

    A call takes what came while the one before it ran, so a lone request waits for nothing; `max_wait_s` makes it wait for
    company. Texts of a call are of neighbouring lengths, for padding costs as much as text does, and the oldest request is
    always in it. (MLServer's own batching joins requests before they are looked at: it takes the shape of the first for that
    of all, and one that is cancelled leaves the others of its batch without an answer.)

    Args:
        sessions: of each member one for every call that may run at once.
        padding: what texts are padded with, by input name; empty where inputs are all of one size.
        per_token: whether outputs have an axis of tokens after that of rows.
        max_rows: rows of a call at most, by member.
        observe: is told the member and the rows of each call.
    """

    def __init__(
        self, sessions: Mapping[str, Sequence[Session]], *, padding: Mapping[str, int], per_token: bool,
        max_rows: Mapping[str, int], max_wait_s: float, observe: Callable[[str, int], None] = lambda member, rows: None,
    ) -> None:  # fmt: skip
        self._sessions, self._padding, self._per_token, self._observe = sessions, padding, per_token, observe
        self._max_rows, self._max_wait_s = max_rows, max_wait_s
        #: Seconds that calls have taken, as a mean over those that may run at once.
        self.busy_s = 0.0
        self._waiting: list[_Waiting] = []
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        calls = len(next(iter(sessions.values())))
        self._threads = ThreadPoolExecutor(calls, thread_name_prefix="network")
        self._workers = [asyncio.create_task(self._work(number)) for number in range(calls)]

    @property
    def rows_waiting(self) -> int:
        """Rows that no call has taken yet."""
        return sum(one.rows for one in self._waiting)

    def check(self, rows: int) -> None:
        """Make sure that so many rows more may wait.

        Raises:
            MLServerError: too many wait already (429).
            InferenceError: it would never fit.
        """
        if rows > MAX_WAITING:
            raise InferenceError(
                f"the request comes to {rows} rows, at most {MAX_WAITING} are taken: send fewer at a time"
            )
        if self.rows_waiting + rows > MAX_WAITING:
            raise MLServerError(f"{self.rows_waiting} rows wait already, of at most {MAX_WAITING}: try again", 429)

    async def __call__(self, member: str, inputs: dict[str, np.ndarray]) -> Outputs:
        """The network's outputs for rows, which may be more than one call takes.

        Args:
            inputs: arrays by name, rows first, then tokens for texts.

        Raises:
            MLServerError: too many rows wait (429).
            InferenceError: there are more than may ever wait, or the network cannot run them.
        """
        rows, most = len(next(iter(inputs.values()))), self._max_rows[member]
        self.check(rows)
        loop = asyncio.get_running_loop()
        parts = [
            _Waiting(
                member, {name: array[start : start + most] for name, array in inputs.items()}, loop.time(),
                loop.create_future(),
            )
            for start in range(0, rows, most)
        ]  # fmt: skip
        self._waiting += parts
        self._arrived.set()
        if self.rows_waiting >= self._max_rows[self._waiting[0].member]:
            self._full.set()
        outputs = await asyncio.gather(*(part.outputs for part in parts))
        return outputs[0] if len(parts) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))

    async def close(self) -> None:
        """Free the networks; what waits is not answered."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown()
        for sessions in self._sessions.values():
            for session in sessions:
                session.close()

    async def _work(self, number: int) -> None:
        """Make calls, one after the other."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            session = self._sessions[batch[0].member][number]
            started = loop.time()
            results = await loop.run_in_executor(self._threads, self._run, session, batch)
            self.busy_s += (loop.time() - started) / len(self._workers)
            self._observe(batch[0].member, sum(one.rows for one in batch))
            for one, result in zip(batch, results, strict=True):
                if one.outputs.done():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    one.outputs.set_exception(result)
                else:
                    one.outputs.set_result(result)

    async def _next_batch(self) -> list[_Waiting]:
        """The oldest request that still wants an answer, with its company."""
        loop = asyncio.get_running_loop()
        while True:
            self._waiting = [one for one in self._waiting if not one.outputs.done()]
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            left = self._waiting[0].since + self._max_wait_s - loop.time()
            if left > 0 and self.rows_waiting < self._max_rows[self._waiting[0].member]:
                self._full.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._full.wait(), left)
                continue
            batch = self._take()
            taken = set(batch)
            self._waiting = [one for one in self._waiting if one not in taken]
            return batch

    def _take(self) -> list[_Waiting]:
        """Those that go into a call with the oldest: for the same member, the nearest in length first, as many as fit."""
        oldest = self._waiting[0]
        batch, room = [oldest], self._max_rows[oldest.member] - oldest.rows
        if not room:
            return batch
        company = [
            one
            for one in self._waiting[1:]
            if one.member == oldest.member and one.inputs.keys() == oldest.inputs.keys()
        ]
        for one in sorted(company, key=lambda other: abs(other.length - oldest.length)):
            if one.rows > room:
                break
            batch.append(one)
            room -= one.rows
        return batch

    def _run(self, session: Session, batch: list[_Waiting]) -> list[Outputs | Exception]:
        """The outputs of each of a batch; where the call fails, of each alone, so that none fails for another's sake."""
        try:
            return list(self._call(session, batch))
        except Exception as error:  # runtimes raise several types without a common base
            if len(batch) == 1:
                reason = " ".join(str(error).split())
                return [InferenceError(f"the network cannot run these inputs: {reason:.300}")]
            return [result for one in batch for result in self._run(session, [one])]

    def _call(self, session: Session, batch: list[_Waiting]) -> list[Outputs]:
        joined = {name: self._join(name, [one.inputs[name] for one in batch]) for name in batch[0].inputs}
        outputs = session.run(joined)
        found, start = [], 0
        for one in batch:
            own = tuple(output[start : start + one.rows] for output in outputs)
            found.append(tuple(output[:, : one.length] for output in own) if self._per_token else own)
            start += one.rows
        return found

    def _join(self, name: str, arrays: list[np.ndarray]) -> np.ndarray:
        """Arrays of several requests in one, texts padded to the longest."""
        if name not in self._padding or len({array.shape[1] for array in arrays}) == 1:
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        longest = max(array.shape[1] for array in arrays)
        joined = np.full((sum(map(len, arrays)), longest), self._padding[name], arrays[0].dtype)
        start = 0
        for array in arrays:
            joined[start : start + len(array), : array.shape[1]] = array
            start += len(array)
        return joined

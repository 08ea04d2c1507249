"""`Turns`: which of several choices to try next, so that the most preferred that will do is found in few tries."""

from __future__ import annotations


class Turns:
    """Turns to try `count` choices, numbered from the most preferred.

    One by one from the first until one will do. By `halving`, for tries that cost minutes, where what is preferred less is
    the likelier to keep a limit on the metric: each try is in the middle of what is open, and what it says holds for all on
    its side. Where none of those tried will do, the rest follow from the last on.

    Attributes:
        chosen: the most preferred choice that will do of those tried; None: none yet.
        tried: those that were tried, in order.
    """

    def __init__(self, count: int, *, halving: bool) -> None:
        self.chosen: int | None = None
        self.tried: list[int] = []
        self._count, self._halving = count, halving
        self._low, self._high = 0, count

    def next(self) -> int | None:
        """The number of the choice to try; None: there is no more to try."""
        if self._low < self._high:
            return (self._low + self._high) // 2 if self._halving else self._low
        if self.chosen is None:
            return max(set(range(self._count)).difference(self.tried), default=None)
        return None

    def tell(self, number: int, *, does: bool, costs: bool = False) -> None:
        """Whether choice `number`, which was just tried, will do; if not, whether by what it `costs`, of which what is
        preferred less has more, rather than by its metric."""
        self.tried.append(number)
        if does:
            self.chosen = self._high = number
        elif costs and self._halving:
            self._high = min(self._high, number)
        else:
            self._low = max(self._low, number + 1)

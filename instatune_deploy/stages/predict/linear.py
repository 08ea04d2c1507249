"""Linear models: ridge on the steps that architectures take, and what another precision adds to a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge, RidgeCV

_PENALTIES = np.logspace(-2, 3, 16)
_MIN_FOR_SLOPES = 3


@dataclass(frozen=True)
class Linear:
    """``intercept + inputs @ slopes``."""

    intercept: float
    slopes: tuple[float, ...]

    @classmethod
    def fit(cls, inputs: np.ndarray, values: np.ndarray, *, monotone: bool) -> Linear:
        """Ridge regression, its penalty by leave-one-out.

        Args:
            inputs: shape ``(n, columns)``; values: shape ``(n,)``.
            monotone: whether no slope may be negative.
        """
        if len(values) < 2:  # there is no other to leave out
            return cls(float(values.mean()), (0.0,) * inputs.shape[1])
        model = RidgeCV(_PENALTIES).fit(inputs, values)
        if monotone:
            model = Ridge(float(model.alpha_), positive=True).fit(inputs, values)
        return cls(float(model.intercept_), tuple(float(slope) for slope in model.coef_))

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Shape ``(n,)``."""
        # Summed row by row in the same order: a matrix product rounds rows differently, and more could come out as less.
        return np.asarray(self.intercept + (inputs * np.array(self.slopes)).sum(axis=1))


@dataclass(frozen=True)
class PrecisionOffset:
    """What a precision adds to the metric in the reference precision (a fraction, mostly below 0), by architecture.

    A precision is evaluated on few networks, so sums over layers must do: of how much of the network is left, and where.

    Args:
        linear: on `Features.sums`.
        n: architectures it was fitted to.
        error: root mean square of what it is off by on architectures that a fit has not seen (leave-one-out); of a
            single one, its offset.
    """

    linear: Linear
    n: int
    error: float

    @classmethod
    def fit(cls, sums: np.ndarray, differences: np.ndarray, *, monotone: bool) -> PrecisionOffset:
        """The offset from `differences`, shape ``(n,)``, of architectures whose `Features.sums` are given."""
        n = len(differences)
        left_out = [
            cls._line(np.delete(sums, i, 0), np.delete(differences, i), monotone).predict(sums[i : i + 1])[0]
            for i in range(n)
            if n > 1
        ]
        error = np.sqrt(np.mean((differences - left_out) ** 2)) if n > 1 else np.abs(differences[0])
        return cls(cls._line(sums, differences, monotone), n, float(error))

    @staticmethod
    def _line(sums: np.ndarray, differences: np.ndarray, monotone: bool) -> Linear:
        if len(differences) < _MIN_FOR_SLOPES:
            return Linear(float(differences.mean()), (0.0,) * sums.shape[1])
        return Linear.fit(sums, differences, monotone=monotone)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PrecisionOffset:
        return cls(linear_from_dict(data["linear"]), int(data["n"]), float(data["error"]))


def linear_from_dict(data: dict[str, Any]) -> Linear:
    """The model that `dataclasses.asdict` described."""
    return Linear(float(data["intercept"]), tuple(float(slope) for slope in data["slopes"]))

"""A Gaussian process over the steps that architectures take: what each adds, and how alike whole networks are.

The covariance of two networks is a sum (Rasmussen and Williams, 2006, Sec. 4.2):

- each step that both take (a layer is there, it keeps more heads, more neurons) adds the variance of its kind;
- so do all steps of a kind together, by how many of them both take: what a layer, a head or a neuron is worth is much the
  same in all layers, and a step's own variance is only for what is not. A few dozen values can tell that much;
- networks that differ in few steps are alike beyond that, by a rational quadratic of the steps that differ, each at the
  rate of its kind. This finds interactions, and networks that share most of their mistakes share their noise;
- a variance times how crowded the evaluated networks are around each. A search evaluates most where networks are good,
  so their crowding tells something before their values do; where they were drawn at random it tells nothing, and its
  variance is found to be small.

What adds up are logarithms of the error, ``1 - value``: what a network lacks multiplies the mistakes that it makes, rather than
adding to them (held-out Kendall tau of recorded sub-networks of BERT-base was 0.001 higher so).

Variances and rates are the most probable ones given the values (Sec. 5.4.1), those of each layer's heads and MLP around
those of their kind. Their priors are what sub-networks of BERT-base on SST-2 showed, wide enough to be overruled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from instatune_deploy.values.features import PRESENCE, Features
from instatune_deploy.values.space import Architecture

#: Prior means of what all steps of a kind would add together if each added its own, and of the sum of their rates: presence,
#: heads, neurons. Values have variance 1, so each of a kind's steps has the share that their number leaves it.
_KIND_VARIANCE, _KIND_RATE = np.array([1.2, 0.36, 0.54]), np.array([3.3, 10.8, 12.0])
#: How much of a step's prior variance it has in common with all steps of its kind.
_IN_COMMON = 0.99
#: Prior means of the variances of crowding, of likeness and of noise.
_CROWD, _ALIKE, _NOISE = 0.14, 0.14, 0.014
#: Prior deviations of logarithms: of what is common, of noise, which differs most from task to task, and of a gene's
#: variance or rate from the common one.
_DEVIATION, _NOISE_DEVIATION, _GENE_DEVIATION = 0.4, 1.0, 0.5
_COMMON = 12
#: How fast a network ceases to crowd another with the share of genes in which they differ.
_CROWD_RATE = 9.6
_ITERATIONS = 60
#: Added to an error before its logarithm is taken: that of a metric near 1 is mostly luck, and none may be infinite.
_LEAST_ERROR = 0.01
#: Prior variance of the mean, and what keeps factors of nearly singular matrices finite.
_CONSTANT, _JITTER = 1.0, 1e-8


@dataclass(frozen=True)
class GaussianProcess:
    """Predicts values of architectures; plain numbers, from which everything else follows.

    Args:
        known: those it was fitted to, all different.
        values: theirs, shape ``(n,)``.
        logarithms: of its parameters: variances of the three kinds of steps, of crowding, rates of the three kinds,
            variances of likeness and of noise (values have variance 1), variances of what the steps of each kind have in
            common; then for each gene the factor of its variance, and for each the factor of its rate.
    """

    features: Features
    known: tuple[Architecture, ...]
    values: tuple[float, ...]
    logarithms: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        features: Features,
        known: tuple[Architecture, ...],
        values: np.ndarray,
        *,
        start: tuple[float, ...] | None = None,
    ) -> GaussianProcess:
        """The process with the most probable parameters, looked for from `start` or from the prior."""
        prior, deviation = _prior(features)
        design = _Design(features, features.counts(known))
        adding = _adding(values)
        standard = (adding - adding.mean()) / (adding.std() or 1.0)
        found = minimize(
            _negative_log_posterior, prior if start is None else np.array(start),
            args=(prior, deviation, design, standard), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS},
        )  # fmt: skip
        return cls(features, known, tuple(values.tolist()), tuple(found.x.tolist()))

    def predict(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the value without its noise, each of shape ``(n,)``.

        Args:
            counts: shape ``(n, genes + 1)``, of `Features.counts`.
        """
        design, factor, weights, mean, scale = self._solved
        covariance, alone = design.against(counts, np.array(self.logarithms))
        explained = solve_triangular(factor, covariance.T, lower=True)
        variance = np.maximum(alone - np.einsum("ij,ij->j", explained, explained), 0.0)
        error = np.exp(-(covariance @ weights * scale + mean))
        # To first order, what moves the logarithm of the error by a little moves the value by that share of the error.
        return 1 + _LEAST_ERROR - error, np.sqrt(variance) * scale * error

    @property
    def noise(self) -> float:
        """Standard deviation of a value's own noise, at the mean of them."""
        adding = _adding(np.array(self.values))
        return float(np.exp(self.logarithms[8] / 2 - adding.mean())) * (float(np.std(adding)) or 1.0)

    @cached_property
    def _solved(self) -> tuple[_Design, np.ndarray, np.ndarray, float, float]:
        """Design, Cholesky factor of the covariance, weights of what adds up, its mean and scale."""
        values, logarithms = _adding(np.array(self.values)), np.array(self.logarithms)
        mean, scale = float(values.mean()), float(values.std()) or 1.0
        design = _Design(self.features, self.features.counts(self.known))
        covariance, _, _ = design.covariance(logarithms)
        factor = np.tril(cho_factor(covariance, lower=True)[0])
        return design, factor, cho_solve((factor, True), (values - mean) / scale), mean, scale

    def to_dict(self) -> dict[str, Any]:
        """All but the features, JSON-ready."""
        return {"known": [str(a) for a in self.known], "values": self.values, "logarithms": self.logarithms}

    @classmethod
    def from_dict(cls, features: Features, data: dict[str, Any]) -> GaussianProcess:
        known = tuple(features.space.check(Architecture.parse(text)) for text in data["known"])
        values, logarithms = (tuple(float(x) for x in data[name]) for name in ("values", "logarithms"))
        if not known or len(known) != len(values) or len(logarithms) != len(_prior(features)[0]):
            raise ValueError(
                f"{len(known)} networks, {len(values)} values and {len(logarithms)} parameters of a process"
            )
        return cls(features, known, values, logarithms)


class _Design:
    """The columns of known networks, and covariances by parameters."""

    def __init__(self, features: Features, counts: np.ndarray) -> None:
        self.features, self.counts = features, counts
        self.kinds, self.genes, self.sizes = features.step_kinds, features.step_genes, features.step_sizes
        self.steps = features.steps(counts)
        crowd = self._crowd(counts)
        self.crowd_mean, self.crowd_scale = float(crowd.mean()), float(crowd.std()) or 1.0
        self.columns = self._columns(self.steps, crowd)

    def covariance(self, logarithms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariance of the known networks with noise, its part by likeness, and ``1 + distance`` of that."""
        parameters = np.exp(logarithms)
        alike, base = self._alike(self.steps, parameters)
        total = _CONSTANT + (self.columns * self._variances(parameters)) @ self.columns.T + alike
        total[np.diag_indices(len(total))] += parameters[8] + _JITTER
        return total, alike, base

    def against(self, counts: np.ndarray, logarithms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Covariance of other networks with the known ones, shape ``(n, known)``, and variance of each, ``(n,)``."""
        parameters = np.exp(logarithms)
        steps = self.features.steps(counts)
        columns = self._columns(steps, self._crowd(counts))
        alike, _ = self._alike(steps, parameters)
        weighed = columns * self._variances(parameters)
        return _CONSTANT + weighed @ self.columns.T + alike, _CONSTANT + (weighed * columns).sum(1) + parameters[7]

    def slopes(
        self, logarithms: np.ndarray, alike: np.ndarray, base: np.ndarray, by_covariance: np.ndarray
    ) -> np.ndarray:
        """Gradient by the logarithms of what has the gradient `by_covariance` (symmetric) by the covariance, whose
        parts are given."""
        parameters = np.exp(logarithms)
        by_variance = np.einsum("ij,ij->j", self.columns, by_covariance @ self.columns) * self._variances(parameters)
        by_alike = by_covariance * alike
        by_distance = -by_alike / base
        # The sum over pairs of |a - b| is that of a + b - 2 a b for steps, which are 0 or 1.
        crossed = np.einsum("ij,ij->j", self.steps, by_distance @ self.steps)
        by_rate = 2 * (self.steps.T @ by_distance.sum(1) - crossed) * self._rates(parameters)
        genes = len(self.features.space.genes)
        return np.concatenate(
            [
                np.bincount(self.kinds, by_variance[:-4], 3),
                by_variance[-1:],
                np.bincount(self.kinds, by_rate, 3),
                [by_alike.sum(), np.trace(by_covariance) * parameters[8]],
                by_variance[-4:-1],
                np.bincount(self.genes, by_variance[:-4], genes),
                np.bincount(self.genes, by_rate, genes),
            ]
        )

    def _variances(self, parameters: np.ndarray) -> np.ndarray:
        """Of each column."""
        of_genes, _ = np.split(parameters[_COMMON:], 2)
        own = parameters[:3][self.kinds] * of_genes[self.genes]
        return np.concatenate([own, parameters[9:_COMMON], parameters[3:4]])

    def _rates(self, parameters: np.ndarray) -> np.ndarray:
        """Of each step."""
        _, of_genes = np.split(parameters[_COMMON:], 2)
        return np.asarray(parameters[4:7][self.kinds] * of_genes[self.genes] * self.sizes)

    def _columns(self, steps: np.ndarray, crowd: np.ndarray) -> np.ndarray:
        """What adds up: steps by the root of their sizes, then sums of the sizes of each kind's steps, then crowding as its
        deviations from the mean."""
        together = np.column_stack([(steps * self.sizes)[:, self.kinds == kind].sum(1) for kind in range(3)])
        crowding = (crowd - self.crowd_mean) / self.crowd_scale
        return np.column_stack([steps * np.sqrt(self.sizes), together, crowding])

    def _alike(self, steps: np.ndarray, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rates = self._rates(parameters)
        first, second = steps @ rates, self.steps @ rates
        distance = first[:, None] + second[None, :] - 2 * (steps * rates) @ self.steps.T
        base = 1 + np.maximum(distance, 0.0)
        return parameters[7] / base, base

    def _crowd(self, counts: np.ndarray) -> np.ndarray:
        """The logarithm of how crowded the known networks are around each, shape ``(n,)``; none crowds itself."""
        genes = len(self.features.space.genes)
        differing = sum((counts[:, i, None] != self.counts[None, :, i]).astype(float) for i in range(genes)) / genes
        near = np.where(differing > 0, np.exp(-_CROWD_RATE * differing), 0.0)
        return np.asarray(np.log(near.mean(1) + 1e-6))


def _adding(values: np.ndarray) -> np.ndarray:
    """Minus the logarithm of the error of each value (at most 1), of the same shape."""
    return -np.log(1 + _LEAST_ERROR - values)


def _prior(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of the logarithms of the parameters, for as many steps of each kind as the space has."""
    steps = np.maximum(np.bincount(features.step_kinds, minlength=3), 1)
    # Layers that no network lacks tell nothing apart.
    steps[PRESENCE] = max(1, features.space.largest.depth - features.space.smallest.depth)
    variance = _KIND_VARIANCE / steps
    own, together = (1 - _IN_COMMON) * variance, _IN_COMMON * variance
    common = np.array([*own, _CROWD, *(_KIND_RATE / steps), _ALIKE, _NOISE, *together])
    genes = 2 * len(features.space.genes)
    deviations = np.full(_COMMON + genes, _DEVIATION)
    deviations[8], deviations[_COMMON:] = _NOISE_DEVIATION, _GENE_DEVIATION
    return np.append(np.log(common), np.zeros(genes)), deviations


def _negative_log_posterior(
    logarithms: np.ndarray, prior: np.ndarray, deviation: np.ndarray, design: _Design, values: np.ndarray
) -> tuple[float, np.ndarray]:
    """Of the parameters, up to a constant, and its gradient."""
    covariance, alike, base = design.covariance(logarithms)
    try:
        factor = cho_factor(covariance, lower=True)
    except (
        np.linalg.LinAlgError,
        ValueError,
    ):  # a step that went too far, even to infinity: the line search comes back
        return 1e10, np.zeros_like(logarithms)
    inverse = cho_solve(factor, np.eye(len(values)))
    weights = inverse @ values
    off = (logarithms - prior) / deviation
    value = 0.5 * values @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
    gradient = design.slopes(logarithms, alike, base, 0.5 * (inverse - np.outer(weights, weights)))
    return float(value), gradient + off / deviation

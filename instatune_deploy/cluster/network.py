"""`Network`: a super-network as values that many processes of a machine can read without a copy of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import no_init_weights

from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import SearchSpace


@dataclass(frozen=True)
class Network:
    """A super-network; arrays in an object store are read where they lie.

    Args:
        weights: parameters and buffers by their names.
        calibration: inputs on which batch norm statistics are measured, see `Supernet.calibrate`; None: there are none.
    """

    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    space: SearchSpace
    weights: Mapping[str, np.ndarray]
    calibration: tuple[Mapping[str, np.ndarray], ...] | None = None

    @classmethod
    def of(cls, supernet: Supernet) -> Network:
        """`supernet` as values."""
        state = supernet.model.state_dict()
        batches = supernet.calibration_batches()
        return cls(
            type(supernet.model), supernet.model.config, supernet.space, {name: _array(t) for name, t in state.items()},
            None if batches is None else tuple({name: _array(t) for name, t in batch.items()} for batch in batches),
        )  # fmt: skip

    def build(self) -> Supernet:
        """The super-network, in evaluation mode; its weights are the arrays themselves and must not be written to."""
        with no_init_weights():
            model = self.model_class(self.config)
        model.load_state_dict({name: _tensor(array) for name, array in self.weights.items()}, assign=True)
        supernet = Supernet(model, self.space).eval()
        if self.calibration is not None:
            batches = [{name: _tensor(array) for name, array in batch.items()} for batch in self.calibration]
            supernet.calibrate(lambda: batches)
        return supernet


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the array cannot be written to
        return torch.from_numpy(array)

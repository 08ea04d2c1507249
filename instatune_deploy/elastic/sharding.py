"""FSDP2: weights, gradients and the optimizer's state are divided among the processes that train, as Accelerate is configured.

The whole network is one unit: all of its weights are there while it runs, and only then. Sub-networks are views into whole
weights, so layers cannot be units of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from instatune_deploy.errors import UsageError

#: What Accelerate's launcher says of FSDP in the environment, by its name there: the one value that works here, whether
#: Accelerate takes it by itself, and the line of Accelerate's configuration.
_NEEDED = {
    "FSDP_VERSION": ("2", False, "fsdp_version: 2"),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", True, "fsdp_auto_wrap_policy: NO_WRAP"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", True, "fsdp_cpu_ram_efficient_loading: false"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", True, "fsdp_activation_checkpointing: false"),
}


def is_sharded() -> bool:
    """Whether the processes were launched to train so."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and "LOCAL_RANK" in os.environ


def check_sharding() -> None:
    """Make sure that FSDP is configured so that sub-networks can share weights.

    Raises:
        UsageError: it is not; says the line of Accelerate's configuration that is needed.
    """
    if not is_sharded():
        return
    for name, (needed, by_itself, line) in _NEEDED.items():
        found = os.environ.get(name, needed if by_itself else "")
        if found.lower() != needed.lower():
            raise UsageError(
                f"FSDP as configured cannot train a super-network: set {line} in Accelerate's configuration"
            )


def shard_on_cpus(accelerator: Accelerator) -> bool:
    """Switch FSDP2 on where processes were launched for it and train on CPUs; whether it was.

    Accelerate (1.15) does so for accelerators alone and would train on CPUs with DDP, though PyTorch divides there, too.
    """
    if not is_sharded() or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    return True


def check_checkpoint(checkpoint: Path, *, sharded: bool) -> None:
    """Make sure that a training that is `sharded`, or is not, can go on from a checkpoint.

    Raises:
        UsageError: it cannot.
    """
    written_so = any(checkpoint.glob(f"{FSDP_MODEL_NAME}*"))
    if written_so != sharded:
        how = ("with", "without") if written_so else ("without", "with")
        raise UsageError(
            f"{checkpoint}: was written {how[0]} FSDP, and training cannot go on from it {how[1]}: launch it as it was "
            "launched before, on any number of processes, or remove the checkpoints"
        )


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be divided, whole; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, divided if `other` is, and where `other` is; all processes must ask."""
    if not isinstance(other, DTensor):
        return tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements)


def gather_weights(model: nn.Module) -> None:
    """Make the parameters of a network that was trained divided whole again; all processes must ask. It is for saving: to be
    run, it is loaded anew."""
    found: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        own: dict[str, Any] = module._parameters
        for name, parameter in own.items():
            if isinstance(parameter, DTensor):
                if parameter not in found:
                    found[parameter] = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
                own[name] = found[parameter]

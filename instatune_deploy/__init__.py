"""A pre-trained transformer goes in; the most accurate network that meets a device's latency budget comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instatune_deploy.faces.api import Run, open_run, profile, run

__version__ = "0.1.0"
__all__ = ["Run", "open_run", "profile", "run"]


def __getattr__(name: str) -> Any:
    """The names of `faces.api`, which is imported only now: it needs PyTorch and takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from instatune_deploy.faces import api

    return getattr(api, name)

"""One file a model family, named by its Hugging Face `model_type`: its axis map."""

import importlib
import pkgutil

from instatune_deploy.elastic.axes import AxisMap
from instatune_deploy.errors import FamilyError


def supported_families() -> list[str]:
    """Model types that have an axis map: the names of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def axis_map(model_type: str) -> AxisMap:
    """The axis map of a family.

    Raises:
        FamilyError: there is none; names the supported ones.
    """
    if model_type not in supported_families():
        raise FamilyError(
            f"model family {model_type!r} has no axis map; supported families: {', '.join(supported_families())}"
        )
    found: AxisMap = importlib.import_module(f"{__name__}.{model_type}").AXIS_MAP
    return found

"""Models of families that transformers does not have, in its manner; importing this makes them known to its Auto classes."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel

from instatune_deploy.elastic.models import beit3


def find_model_class(name: str) -> type[PreTrainedModel] | None:
    """The model class of that name, of transformers or of this package; None if neither has one."""
    found: Any = getattr(beit3, name, None) or getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None

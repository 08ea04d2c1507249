"""One thread for linear algebra: matrices of a few hundred rows are done before a second thread has woken up."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Within it numpy and scipy compute on one thread."""
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # it looks at every loaded library, which takes longer than a prediction

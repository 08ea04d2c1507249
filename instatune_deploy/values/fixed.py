"""`FixedSizes`: what the inputs of a file are fixed to. Imports nothing, so that it can travel to devices alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FixedSizes:
    """Sizes that every call of a file has: samples a call, and tokens of a text; None where any will do.

    Raises:
        ValueError: one is not positive, or none is given.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic where it is there

    batch: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = [size for size in (self.batch, self.tokens) if size is not None]
        if not given or min(given) < 1:
            raise ValueError(f"fixed sizes must be positive, found batch {self.batch} and tokens {self.tokens}")

    def __str__(self) -> str:
        batch = "any batch" if self.batch is None else f"batch {self.batch}"
        return batch if self.tokens is None else f"{batch}, {self.tokens} tokens"

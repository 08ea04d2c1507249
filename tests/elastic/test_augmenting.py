"""Samples changed at random."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instatune_deploy.elastic.augmenting import IGNORED, augmented

FIRST, LAST = 101, 102


def texts(lengths: list[int]) -> dict[str, Tensor]:
    """Texts of ascending tokens from 1, each of so many tokens, between a first and a last one, padded by zeros."""
    rows = [[FIRST, *range(1, length + 1), LAST] for length in lengths]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = (ids > 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(rows))}


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8), st.floats(0, 1, allow_nan=False), st.integers(0, 2**63 - 1)
)
def test_texts_become_runs_of_their_tokens(lengths: list[int], share: float, seed: int) -> None:
    batch = texts(lengths)
    before = {name: value.clone() for name, value in batch.items()}
    found = augmented(batch, share, seed=seed)
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    assert int((found["labels"] == IGNORED).sum()) == min(len(lengths) - 1, round(share * len(lengths)))
    assert (found["attention_mask"].sum(dim=1) == found["attention_mask"].shape[1]).any()  # no padding in all of them
    for row, length in enumerate(lengths):
        mask = found["attention_mask"][row]
        assert torch.equal(mask, mask.sort(descending=True).values)
        ids = found["input_ids"][row][mask.bool()].tolist()
        assert (ids[0], ids[-1]) == (FIRST, LAST)
        inner = ids[1:-1]
        if found["labels"][row] == IGNORED:
            assert inner == list(range(inner[0], inner[0] + len(inner))) if inner else length == 0
        else:
            assert (inner, found["labels"][row]) == (list(range(1, length + 1)), row)
    again = augmented(batch, share, seed=seed)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_other_seeds_change_other_samples() -> None:
    batch = texts([9] * 16)
    found = [augmented(batch, 0.5, seed=seed) for seed in range(4)]
    assert len({tuple(one["labels"].tolist()) for one in found}) == 4
    assert len({tuple(one["input_ids"].flatten().tolist()) for one in found}) == 4


def test_images_are_moved_and_mirrored() -> None:
    image = torch.arange(3 * 16 * 16.0).view(3, 16, 16)
    batch = {"pixel_values": image.repeat(64, 1, 1, 1), "labels": torch.arange(64)}
    found = augmented(batch, 0.75, seed=3)
    changed = found["labels"] == IGNORED
    assert int(changed.sum()) == 48
    assert all(torch.equal(one, image) for one in found["pixel_values"][~changed])
    # A pixel in the middle is still there, at most two away, in a mirrored image from the other side.
    mirrored = 0
    for one in found["pixel_values"][changed]:
        (row, column) = (one[0] == image[0, 8, 5]).nonzero()[0].tolist()
        assert abs(row - 8) <= 2
        assert min(abs(column - 5), abs(15 - column - 5)) <= 2
        mirrored += abs(15 - column - 5) <= 2
    assert 8 < mirrored < 40

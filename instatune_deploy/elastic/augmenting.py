"""Training samples that are changed at random, for which the teacher's word alone counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

#: Of the tokens between a text's first and last, the smallest share that is kept.
MIN_SPAN = 0.2
#: Images are moved by up to this share of their sides.
MAX_SHIFT = 1 / 8
#: The label of a sample that no loss reads: what PyTorch's cross entropy ignores.
IGNORED = -100


def augmented(batch: Mapping[str, Tensor], share: float, *, seed: int) -> dict[str, Tensor]:
    """The batch with a share of its samples changed, drawn at random; at least one stays as it is.

    A text becomes a random run of its tokens, between its first and its last, which are special ones; an image is moved by up
    to an eighth of its sides and mirrored half of the time. As that may change the class, their labels are set to `IGNORED`:
    they are for a teacher to judge.

    Args:
        batch: ``labels`` of shape (samples,), and ``input_ids`` with ``attention_mask``, padded on the right, of shape
            (samples, tokens), or ``pixel_values`` of shape (samples, channels, height, width). It is left as it is.
        share: of the samples, from 0 to 1.
    """
    found = dict(batch)
    samples = len(batch["labels"])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(samples, generator=generator)[: min(samples - 1, round(share * samples))].tolist()
    if not drawn:
        return found
    found["labels"] = batch["labels"].clone()
    found["labels"][drawn] = IGNORED
    if "pixel_values" in batch:
        found["pixel_values"] = batch["pixel_values"].clone()
        for row in drawn:
            found["pixel_values"][row] = _moved(batch["pixel_values"][row], generator)
        return found
    return found | _spans({name: value for name, value in batch.items() if value.dim() == 2}, drawn, generator)


def _spans(texts: dict[str, Tensor], drawn: list[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Texts of which those `drawn` are cut to runs of their tokens; what is padding in all of them is cut off."""
    lengths = texts["attention_mask"].sum(dim=1)
    samples, width = texts["attention_mask"].shape
    # Token `index` of a row of the result is token `places[row, index]`; the last one moves up behind the run.
    places = torch.arange(width).repeat(samples, 1)
    for row in drawn:
        length = int(lengths[row])
        inner = length - 2
        if inner < 2:
            continue
        kept = int(torch.randint(max(1, round(MIN_SPAN * inner)), inner + 1, (), generator=generator))
        start = int(torch.randint(0, inner - kept + 1, (), generator=generator))
        places[row, 1 : kept + 1] += start
        places[row, kept + 1] = length - 1
        lengths[row] = kept + 2
    longest = int(lengths.max())
    places = places[:, :longest].to(lengths.device)
    found = {name: value.gather(1, places) for name, value in texts.items()}
    mask = (torch.arange(longest, device=lengths.device) < lengths[:, None]).to(texts["attention_mask"].dtype)
    return found | {"attention_mask": mask}


def _moved(image: Tensor, generator: torch.Generator) -> Tensor:
    """An image of shape (channels, height, width) moved, its edges reflected, and perhaps mirrored."""
    height, width = image.shape[-2:]
    down, right = (
        int(torch.randint(-int(side * MAX_SHIFT), int(side * MAX_SHIFT) + 1, (), generator=generator))
        for side in (height, width)
    )
    padded = F.pad(image, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="reflect")
    top, left = max(-down, 0), max(-right, 0)
    found = padded[:, top : top + height, left : left + width]
    return found.flip(-1) if bool(torch.randint(0, 2, (), generator=generator)) else found

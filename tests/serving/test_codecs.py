"""What a server makes of a request's words and files is what training made of them."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from instatune_deploy.serving.codecs import _decoded
from instatune_deploy.serving.model import _limits

ORIENTATION = 0x0112


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_turned_as_it_is_for_training(orientation: int) -> None:
    pixels = np.zeros((24, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    rows = Dataset.from_dict({"image": [{"bytes": file.getvalue()}]}, features=Features(image=ImageFeature()))
    trained, served = rows[0]["image"].convert("RGB"), _decoded(file.getvalue())
    assert np.array_equal(np.asarray(served), np.asarray(trained))
    assert (served.size == (40, 24)) == (orientation in (1, 3))


@pytest.mark.parametrize(
    ("of_config", "limit"),
    [({"type_vocab_size": 2}, 2), ({"type_vocab_size": 0}, 2), ({}, 2), ({"type_vocab_size": 1}, 1)],
)
def test_segments_are_taken_as_tokenizers_give_them_where_the_network_looks_at_none(
    of_config: dict[str, int], limit: int
) -> None:
    sample = {"token_type_ids": np.zeros((1, 8), dtype=np.int64)}
    assert _limits(SimpleNamespace(vocab_size=100, **of_config), sample) == {"token_type_ids": limit}

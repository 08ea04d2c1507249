"""What a server makes of a request's words and files is what training made of them.

The server's modules are imported in a process of their own: MLServer's messages and those of Triton's client, which other tests
load, cannot be in one.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from tests.serving.processes import run_code

ORIENTATION = 0x0112
DECODE = """
import sys
from pathlib import Path
import numpy as np
from instatune_deploy.serving.codecs import _decoded
np.save(sys.argv[2], np.asarray(_decoded(Path(sys.argv[1]).read_bytes())))
"""
LIMITS = """
import json, sys
from types import SimpleNamespace
from instatune_deploy.serving.model import _limits
configs = json.loads(sys.argv[1])
print(json.dumps([_limits(SimpleNamespace(vocab_size=100, **own), {"token_type_ids": None}) for own in configs]))
"""


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_is_turned_as_it_is_for_training(orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((24, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    rows = Dataset.from_dict({"image": [{"bytes": file.getvalue()}]}, features=Features(image=ImageFeature()))
    (tmp_path / "photo.png").write_bytes(file.getvalue())
    run_code(DECODE, tmp_path / "photo.png", tmp_path / "served.npy")
    served = np.load(tmp_path / "served.npy")
    assert np.array_equal(served, np.asarray(rows[0]["image"].convert("RGB")))
    assert (served.shape == (24, 40, 3)) == (orientation == 1)


def test_grey_of_16_bits_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    run_code(DECODE, tmp_path / "deep.png", tmp_path / "served.npy")
    served = np.load(tmp_path / "served.npy")
    assert np.array_equal(served[..., 0].ravel(), np.round(np.arange(0, 65536, 1024) / 257))
    assert (served == served[..., :1]).all()


def test_segments_are_taken_as_tokenizers_give_them_where_the_network_looks_at_none() -> None:
    configs = [{"type_vocab_size": 2}, {"type_vocab_size": 0}, {}, {"type_vocab_size": 1}]
    found = json.loads(run_code(LIMITS, json.dumps(configs)))
    assert [limits["token_type_ids"] for limits in found] == [2, 2, 2, 1]

"""Images as models read them, in training and in serving alike."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB of 8 bits a channel, turned as its EXIF orientation says; grey of 16 bits is scaled, not cut off at 255."""
    # Pillow calls the 16 bits of a PNG "I" up to version 10.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    turned = ImageOps.exif_transpose(image)
    if deep:
        turned = Image.fromarray(((np.asarray(turned).astype(np.uint32) + 128) // 257).astype(np.uint8))
    return turned.convert("RGB")

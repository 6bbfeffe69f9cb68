"""The digest by which a record names its image."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that verify and query need no image library
    from PIL import Image


def image_digest(image: Image.Image) -> str:
    """Hex SHA-256 over the mode, the size and the raw pixel bytes of an image, not over a file.

    So it stays through PNG and any other lossless format, and metadata does not count; JPEG changes pixels, and the
    digest. A palette image counts as the colours that it shows. Exactly: ``"safeguard.dev/image/v1\\n<mode>
    <width>x<height>\\n"`` in ASCII, then the pixels row by row as PIL's ``tobytes()`` gives them.
    """
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    head = f"safeguard.dev/image/v1\n{image.mode} {image.width}x{image.height}\n"
    return hashlib.sha256(head.encode("ascii") + image.tobytes()).hexdigest()

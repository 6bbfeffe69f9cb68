"""The digest of an image: of what is seen, not of a file."""

from __future__ import annotations

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from safeguard.audit import image_digest

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@CALM
@given(st.sampled_from(["RGB", "RGBA", "L"]), st.integers(1, 9), st.integers(1, 9), st.data())
def test_it_stays_through_png(mode: str, width: int, height: int, data: st.DataObject) -> None:
    size = width * height * len(mode)
    image = Image.frombytes(mode, (width, height), data.draw(st.binary(min_size=size, max_size=size)))
    again = reopened(image)
    assert image_digest(again) == image_digest(image)


def test_one_changed_pixel_changes_it() -> None:
    image = Image.new("RGB", (4, 4))
    other = image.copy()
    other.putpixel((3, 3), (0, 0, 1))
    assert image_digest(other) != image_digest(image)


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    assert image_digest(Image.new("RGB", (2, 8))) != image_digest(Image.new("RGB", (8, 2)))


def test_metadata_do_not_count() -> None:
    image = Image.new("RGB", (4, 4), "red")
    noted = image.copy()
    noted.info["comment"] = "made today"
    assert image_digest(noted) == image_digest(image)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_palette_image_counts_as_its_colours(shift: int) -> None:
    image = Image.new("P", (2, 2), shift)
    image.putpalette([10, 20, 30] * 256)
    assert image_digest(image) == image_digest(Image.new("RGB", (2, 2), (10, 20, 30)))


def reopened(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()))

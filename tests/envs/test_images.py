"""The one resize: exact where nothing is to do, antialiased, and strict about what it takes."""

import numpy as np
import pytest

from roboimi.envs.images import resize_frame
from roboimi.errors import DataError


def test_frame_of_the_right_size_passes_through_unchanged():
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert resize_frame(frame, (256, 256)) is frame


def test_size_is_height_then_width():
    assert resize_frame(np.zeros((320, 480, 3), np.uint8), (100, 200)).shape == (100, 200, 3)


def test_every_source_pixel_counts():
    """One-pixel stripes average to grey; an interpolation of nearest neighbours would keep black and white."""
    frame = np.zeros((512, 512, 3), np.uint8)
    frame[:, ::2] = 255
    small = resize_frame(frame, (128, 128))
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 2


def test_content_keeps_its_place():
    frame = np.zeros((320, 320, 3), np.uint8)
    frame[40:80, 200:240, 0] = 255
    small = resize_frame(frame, (256, 256))
    rows, columns = np.nonzero(small[..., 0] > 127)
    assert (rows.min(), rows.max() + 1) == (32, 64)
    assert (columns.min(), columns.max() + 1) == (160, 192)
    assert small[..., 1:].max() == 0


def test_result_can_be_written_to():
    resized = resize_frame(np.zeros((320, 320, 3), np.uint8), (256, 256))
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((320, 320, 3), np.float32),
        np.zeros((320, 320), np.uint8),
        np.zeros((320, 320, 4), np.uint8),
        np.zeros((2, 320, 320, 3), np.uint8),
        [[0, 0, 0]],
    ],
)
def test_other_types_and_shapes_are_refused(frame):
    with pytest.raises(DataError, match=r"uint8 of shape \(H, W, 3\), got"):
        resize_frame(frame, (256, 256))

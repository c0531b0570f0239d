"""The one resize between what an environment renders and what a dataset stores or a policy sees.

Recording and rollouts both call `resize_frame`, so a policy never meets another interpolation than it was trained on.
"""

import numpy as np
from PIL import Image

from roboimi.errors import DataError


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one RGB frame, antialiased; a frame that already has the size is returned as it is.

    Pillow's bilinear filter widens with the reduction, so that every source pixel counts; it stretches the frame where
    the aspect ratios differ.

    Args:
        frame: (H, W, 3) uint8, 0 to 255.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        DataError: the frame has another shape or type.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise DataError(
            f"A frame to resize must be uint8 of shape (H, W, 3), got {found}: pass one RGB image in 0..255."
        )
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))

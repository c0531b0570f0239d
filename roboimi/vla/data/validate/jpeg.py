"""Images that were stored compressed: (T, n) uint8, each row one JPEG or PNG file padded with zeros.

The convention of ACT-style recorders (https://github.com/tonyzhaozh/act, `compress`): rows are padded to the longest,
so decoders must cope with the zeros. Decoding happens only after the header's size is known to be the contract's.
"""

import io
from collections.abc import Callable, Iterator

import h5py
import numpy as np
from PIL import Image

_MAGIC = {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}


def is_compressed(dataset: h5py.Dataset) -> bool:
    """Whether a dataset looks like one compressed image a row."""
    return dataset.dtype == np.uint8 and dataset.ndim == 2


def wrong_frames(
    dataset: h5py.Dataset, image_shape: tuple[int, ...], beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[tuple[int, int], str]]:
    """First and last frame of every run that cannot be decoded or has another size, and what is wrong with it.

    Args:
        dataset: (T, n) uint8.
        image_shape: (H, W, 3) of every image.
        beat: called after every image.
    """
    run: tuple[int, int, str] | None = None
    for frame in range(dataset.shape[0]):
        what = wrong_image(bytes(dataset[frame]), image_shape)
        if run and what != run[2]:
            yield (run[0], run[1]), run[2]
            run = None
        if what:
            run = (run[0] if run else frame, frame, what)
        beat()
    if run:
        yield (run[0], run[1]), run[2]


def wrong_image(data: bytes, image_shape: tuple[int, ...]) -> str | None:
    """What is wrong with one compressed image; None where it decodes to `image_shape`."""
    kind = _MAGIC.get(data[:2])
    if kind is None:
        return "the image is neither a JPEG nor a PNG"
    if kind == "JPEG" and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return "the image is cut off"
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if (image.height, image.width) != tuple(image_shape[:2]):
                return f"the image is {image.height}x{image.width}, not {image_shape[0]}x{image_shape[1]}"
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"the image cannot be decoded ({str(error)[:80]})"
    return None

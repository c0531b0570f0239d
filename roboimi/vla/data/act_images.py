"""Images of ALOHA/ACT episodes as their recorders write them: raw arrays, or one JPEG a frame, padded with zeros.

The recorders of ALOHA (tonyzhaozh/act, MarkFzp/act-plus-plus, MarkFzp/mobile-aloha, Interbotix/aloha) mark a compressed
episode with the attribute `compress` and store `/observations/images/<camera>` as (T, padded) uint8. Two traps:

- They hand RGB arrays to `cv2.imencode`, which takes them for BGR. Red and blue are therefore exchanged inside the
  files; their own loaders, which read with `cv2.imdecode`, exchange them back and never notice. Decoders that keep to
  the standard, Pillow among them, show a blue robot. `bgr`, the default here, undoes it; `rgb` is for recorders that
  convert first (openpi's `aloha_real` takes `bgr8` frames from its camera, so that its files are ordinary JPEGs).
- `/compress_len` lists the lengths in the order of the recorder's own camera list, or of the sorted names, depending on
  the program, as float32. A JPEG says itself where it ends, so that the lengths are not needed and not read; a frame
  without its end marker is truncated and refused.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from roboimi.errors import DataError
from roboimi.vla.data.episode import image_name
from roboimi.vla.data.hdf5 import first_line, get_dataset

COLOUR_ORDERS = ("bgr", "rgb")
"""What a standard decoder gets from the JPEG files: blue first (OpenCV was given RGB), or red first."""
LARGEST_SIDE = 8192
FRAMES_AT_A_TIME = 32

_END_OF_JPEG = b"\xff\xd9"


def is_compressed(dataset: h5py.Dataset) -> bool:
    """Whether a camera's images are encoded: one a row, padded or of its own length. The attribute may be missing."""
    return dataset.ndim in (1, 2)


def image_size(path: Path, file: h5py.File, camera: str) -> tuple[int, int]:
    """(height, width) of a camera's images; of the first one where they are compressed.

    Raises:
        DataError: they are no images, or there are none.
    """
    dataset = get_dataset(file, image_name(camera))
    if is_compressed(dataset):
        if not dataset.shape[0]:
            raise DataError(f"Episode {path} has no image of the camera {camera!r}: record it again.")
        with _opened(path, camera, 0, _encoded(path, camera, dataset, 0)) as image:
            return image.height, image.width
    if dataset.ndim != 4 or dataset.shape[3] != 3 or dataset.dtype != np.uint8:
        raise DataError(
            f"Episode {path} has images of type {dataset.dtype} and shape {dataset.shape} (camera {camera!r}): store "
            "uint8 images (T, H, W, 3), or one JPEG a frame in (T, padded)."
        )
    return dataset.shape[1], dataset.shape[2]


def frames(path: Path, file: h5py.File, camera: str, colour_order: str = COLOUR_ORDERS[0]) -> Iterator[np.ndarray]:
    """The images of a camera, (H, W, 3) uint8 RGB, one at a time.

    Args:
        path: of the episode, for messages.
        file: the episode.
        camera: name under `/observations/images`.
        colour_order: of compressed images; see `COLOUR_ORDERS`. Arrays are RGB as they are.

    Raises:
        DataError: an image is damaged, truncated, or of another size than the first one.
    """
    size = image_size(path, file, camera)
    dataset = get_dataset(file, image_name(camera))
    if not is_compressed(dataset):
        # A chunk of several frames is unpacked once, not once a frame.
        step = min(dataset.chunks[0], FRAMES_AT_A_TIME) if dataset.chunks else 1
        for first in range(0, dataset.shape[0], step):
            yield from _rows(path, camera, dataset, first, first + step)
        return
    for frame in range(dataset.shape[0]):
        encoded = _encoded(path, camera, dataset, frame)
        with _opened(path, camera, frame, encoded) as image:
            if (image.height, image.width) != size:
                raise DataError(
                    f"Episode {path} has image {frame} of the camera {camera!r} as {image.height}x{image.width}, the "
                    f"first as {size[0]}x{size[1]}: record it again, or drop it."
                )
            pixels = _decoded(path, camera, frame, image)
        yield np.ascontiguousarray(pixels[..., ::-1]) if colour_order == "bgr" else pixels


def _rows(path: Path, camera: str, dataset: h5py.Dataset, first: int, last: int) -> np.ndarray:
    """The rows `first` to `last`, exclusive."""
    try:
        return dataset[first:last]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Episode {path} cannot be read at image {first} of the camera {camera!r} ({first_line(error)}): restore "
            "or drop it."
        ) from error


def _encoded(path: Path, camera: str, dataset: h5py.Dataset, frame: int) -> bytes:
    """One image file without its padding."""
    row = _rows(path, camera, dataset, frame, frame + 1)[0]
    encoded = row.rstrip(b"\0") if isinstance(row, bytes) else np.asarray(row, dtype=np.uint8).tobytes().rstrip(b"\0")
    if encoded[:2] == b"\xff\xd8" and not encoded.endswith(_END_OF_JPEG):
        raise DataError(
            f"Episode {path} has image {frame} of the camera {camera!r} cut off before its end: record it again, or "
            "drop it."
        )
    return encoded


def _opened(path: Path, camera: str, frame: int, encoded: bytes) -> Image.Image:
    """The image's header; nothing is decoded yet."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _undecodable(path, camera, frame, "no JPEG or PNG") from error
    if max(image.size) > LARGEST_SIDE:
        raise _undecodable(path, camera, frame, f"{image.width} pixels wide, {image.height} high")
    return image


def _decoded(path: Path, camera: str, frame: int, image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise _undecodable(path, camera, frame, first_line(error)) from error


def _undecodable(path: Path, camera: str, frame: int, why: str) -> DataError:
    return DataError(
        f"Episode {path} has image {frame} of the camera {camera!r} that cannot be decoded ({why}): record it "
        "again, or drop it."
    )

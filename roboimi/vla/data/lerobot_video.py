"""The videos of a LeRobot dataset: decoded in one pass a file, and encoded, with PyAV.

Nothing is sought and no frame is guessed: frame n of a file must be at n / fps seconds, every episode gets exactly the
frames that it claims, and every frame of a file belongs to an episode.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from roboimi.errors import ConfigError, DataError
from roboimi.storage.atomic import writing
from roboimi.vla.data.lerobot_format import TOLERANCE_S, Clip, Episode, LeRobotDataset, optional

CODECS = {"libx264": 18, "libsvtav1": 30}
"""Encoders that every wheel of PyAV has, and the constant rate factor that they are used with by default."""
KEYFRAME_EVERY = 2
"""Every second frame stands alone, so that a training may read any frame quickly (LeRobot's own setting)."""


class CameraVideos:
    """The frames of one camera, episode after episode: one open file and one decoded frame at a time.

    Raises:
        DataError: on reading, when a file is missing, damaged, or has other frames than `meta/episodes` says.
    """

    def __init__(self, dataset: LeRobotDataset, key: str):
        self.dataset, self.key = dataset, key
        self._path: Path | None = None
        self._decoded: Iterator[np.ndarray] | None = None
        self._position = 0

    def frames(self, episode: Episode) -> Iterator[np.ndarray]:
        """`episode.length` images (H, W, 3) uint8, RGB. Episodes are asked for in the order of their numbers."""
        clip = episode.clips[self.key]
        first = self._first_frame(episode, clip)
        path = self.dataset.video_file(self.key, clip)
        if path != self._path:
            self.finish()
            self._path, self._decoded, self._position = path, decode(path, self.dataset.fps), 0
        if first != self._position:
            raise DataError(
                f"Episode {episode.index} begins at frame {first} of {path}, but the episodes before it end at frame "
                f"{self._position}: the videos and {self.dataset.root / 'meta/episodes'} do not belong together."
            )
        for number in range(episode.length):
            image = next(self._decoded, None)
            if image is None:
                raise DataError(
                    f"{path} ends after {self._position} frames, {episode.length - number} short of episode "
                    f"{episode.index}, which has {episode.length} rows: record or download it again."
                )
            self._position += 1
            yield image

    def finish(self) -> None:
        """Close the file; there must be nothing left in it."""
        if self._decoded is not None and next(self._decoded, None) is not None:
            raise DataError(
                f"{self._path} goes on after frame {self._position}, where its last episode ends: the videos and the "
                "table do not belong together."
            )
        self.close()

    def close(self) -> None:
        """Close the file, whatever is left in it."""
        if self._decoded is not None:
            self._decoded.close()
        self._path = self._decoded = None

    def _first_frame(self, episode: Episode, clip: Clip) -> int:
        fps = self.dataset.fps
        first, last = round(clip.start_s * fps), round(clip.end_s * fps)
        if abs(clip.start_s - first / fps) > TOLERANCE_S:
            raise DataError(
                f"Episode {episode.index} begins {clip.start_s:.4f} s into a video of {self.key}, between two frames "
                f"at {fps} Hz: the timestamps in {self.dataset.root / 'meta/episodes'} are shifted."
            )
        if last - first != episode.length:
            raise DataError(
                f"Episode {episode.index} has {episode.length} rows but {last - first} frames of {self.key}: record or "
                "download it again."
            )
        return first


def decode(path: Path, fps: int) -> Iterator[np.ndarray]:
    """All frames of a video file in order, (H, W, 3) uint8, RGB.

    Raises:
        DataError: the file is missing or damaged, or frame n is not at n / fps seconds.
        ConfigError: PyAV is not installed.
    """
    av = optional("av")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video in it: restore it.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:  # the decoder has painted over what it could not read
                    raise DataError(f"{path} is damaged at frame {number}: restore it.")
                time = None if frame.pts is None else float(frame.pts * stream.time_base)
                if time is None or abs(time - number / fps) > TOLERANCE_S:
                    found = "no time" if time is None else f"{time:.4f} s"
                    raise DataError(
                        f"{path} has frame {number} at {found}, not at {number / fps:.4f} s: a frame is missing or "
                        f"doubled, or the video does not have {fps} frames a second."
                    )
                yield frame.to_ndarray(format="rgb24")
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: download the dataset again.") from error
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise DataError(f"{path} cannot be decoded ({reason}): restore it.") from error


class VideoWriter:
    """Encodes the frames of one camera into one file: frame n at n / fps seconds, several episodes one after another.

    Raises:
        DiskFullError, StoreError: the file cannot be written.
        ConfigError: PyAV is not installed or lacks the encoder.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int], codec: str, crf: int):
        self._av = optional("av")
        self.path, self.frames, self.bytes = path, 0, 0
        self._keyframe = True
        options = {"crf": str(crf), "g": str(KEYFRAME_EVERY)}
        # Frames in the order of their times: no edit list that a reader could misunderstand.
        options |= {"bf": "0"} if codec == "libx264" else {"preset": "8"}
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 reads its verbosity there: errors only
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = self._av.open(str(path), "w", format="mp4")
        try:
            self._stream = self._container.add_stream(codec, rate=fps, options=options)
        except (ValueError, self._av.error.FFmpegError) as error:
            self._container.close()
            raise ConfigError(f"This PyAV has no encoder {codec}: choose one of {', '.join(CODECS)}.") from error
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"

    def start_episode(self) -> None:
        """The next frame stands alone, so that episodes can be cut apart without encoding them again."""
        self._keyframe = True

    def write(self, image: np.ndarray) -> None:
        """Append one image (H, W, 3) uint8, RGB."""
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if self._keyframe:
            frame.pict_type = self._av.video.frame.PictureType.I
            self._keyframe = False
        self._mux(frame)
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._mux(None)
        with writing(self.path):
            self._container.close()

    def abandon(self) -> None:
        """Let go of a file that nobody will read."""
        with contextlib.suppress(self._av.error.FFmpegError):
            self._container.close()

    def _mux(self, frame: Any) -> None:
        with writing(self.path):
            for packet in self._stream.encode(frame):
                self.bytes += packet.size
                self._container.mux(packet)

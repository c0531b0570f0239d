"""The process that parses episodes: reads jobs as JSON lines, answers in JSON lines, knows nothing else.

    → {"dataset": {"root": ..., "manifest": {...}, "limits": {...}}}      once
    → {"episode": "episode_000003.hdf5"}                                  checks of one episode
    → {"statistics": true}                                                of the train split
    → {"pictures": "episode_000003.hdf5", "wanted": [[camera, frame], ...], "height": 96}
    ← {"beat": 1}                                                         now and then: work goes on
    ← {"result": ...} or {"error": "..."}                                 one a job

JSON and not pickle: a file that took this process over must not be able to take its parent over too.
"""

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roboimi.vla.data.episode import image_name
from roboimi.vla.data.hdf5 import get_dataset, open_file
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry, Manifest
from roboimi.vla.data.statistics import compute_statistics
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.run_episode import check_episode
from roboimi.vla.data.validate.sandbox import allow_cpu, lock_down

BEAT_S = 1.0
_CPU_S = 60.0
_SLOWEST_BYTES_A_SECOND = 4e6


class Server:
    """Does one job after another for the process at the other end."""

    def __init__(self, send: Callable[[dict[str, Any]], None]):
        self._send = send
        self._ref: DatasetRef | None = None
        self._limits = Limits()
        self._entries: dict[str, EpisodeEntry] = {}
        self._beaten_at = 0.0

    def beat(self) -> None:
        """Say that work goes on; at most once a second."""
        now = time.monotonic()
        if now - self._beaten_at > BEAT_S:
            self._beaten_at = now
            self._send({"beat": 1})

    def do(self, job: dict[str, Any]) -> None:
        """One job, one answer."""
        if "dataset" in job:
            given = job["dataset"]
            manifest = Manifest.from_dict(given["manifest"])
            self._ref = DatasetRef(Path(given["root"]), manifest, given["digest"])
            self._limits = Limits(**given["limits"])
            self._entries = {entry.file: entry for entry in manifest.episodes}
            self._send({"result": None})
        elif "episode" in job:
            entry = self._entries[job["episode"]]
            allow_cpu(_CPU_S + self._decoded_bytes(entry) / _SLOWEST_BYTES_A_SECOND)
            self._send({"result": check_episode(self._ref, entry, self._limits, self.beat).to_dict()})
        elif "statistics" in job:
            allow_cpu(_CPU_S + len(self._entries))
            self._send({"result": compute_statistics(self._ref)})
        elif "pictures" in job:
            allow_cpu(_CPU_S)
            entry = self._entries[job["pictures"]]
            self._send({"result": pictures(self._ref.path(entry), job["wanted"], job["height"])})

    def _decoded_bytes(self, entry: EpisodeEntry) -> float:
        contract = self._ref.contract
        return max(entry.bytes, entry.frames * float(np.prod(contract.image_shape)) * contract.num_views)


def pictures(path: Path, wanted: list[list[Any]], height: int) -> list[str]:
    """Small WebP images in base64; empty text for one that cannot be read.

    Args:
        path: the episode.
        wanted: camera and frame of each.
        height: in pixels; the width follows.
    """
    encoded = []
    with open_file(path) as file:
        for camera, frame in wanted:
            dataset = get_dataset(file, image_name(camera))
            try:
                pixels = dataset[frame]
            except (OSError, RuntimeError, ValueError):
                encoded.append("")
                continue
            image = Image.fromarray(pixels)
            image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BOX)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=60)
            encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return encoded


def main() -> None:
    """Serve until the other end closes; nothing that a library prints can be taken for an answer."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    Image.init()
    lock_down()

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    server = Server(send)
    send({"result": "ready"})
    # From here on nobody reads the error output, and a full pipe would stop this process.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for line in sys.stdin.buffer:
        try:
            server.do(json.loads(line))
        except Exception as error:  # whatever a hostile file provokes is an answer about that file
            send({"error": f"{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    main()

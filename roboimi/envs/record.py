"""Records demonstrations of the scripted expert into a dataset folder, on all cores, safely against being killed.

Episode i tries the seeds seed + i, seed + i + N, seed + i + 2N, ... of N episodes until the expert succeeds, so that
the dataset is the same whatever the number of workers and however often the recording was interrupted. An episode
appears under its name only when it is whole; the manifest comes last, and makes the folder a dataset.
"""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from roboimi.cores import usable_cores
from roboimi.envs import scene
from roboimi.envs.demonstration import Demonstration, demonstrate
from roboimi.envs.expert import ScriptedExpert
from roboimi.envs.images import resize_frame
from roboimi.envs.recipe import TASK, Recipe, check_folder, claim_folder
from roboimi.envs.transfer_cube import TransferCubeEnv
from roboimi.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    HeldByAnotherError,
    RenderError,
    RoboimiError,
    StoreError,
)
from roboimi.progress import Progress
from roboimi.storage.atomic import TEMPORARY_PREFIX
from roboimi.vla.data.episode import image_name, write_episode
from roboimi.vla.data.manifest import (
    MANIFEST_NAME,
    EpisodeEntry,
    describe_episode,
    read_manifest,
    split_episodes,
    write_manifest,
)
from roboimi.worker_process import begin_worker_process

MAX_ATTEMPTS = 20
VALIDATION_FRACTION = 0.05
STALL_S = 600.0
_DISK_MARGIN = 1.1


class RecordingError(RoboimiError):
    """Episodes could not be recorded; what is finished is kept."""

    failure_class = "recording"
    retryable = True


def record(out: Path | str, episodes: int, seed: int = 0, workers: int | None = None, **settings: Any) -> str:
    """Record a dataset into the folder `out`, or finish or recognise one of the same recipe that is already there.

    Args:
        out: the folder; created if it is not there.
        episodes: how many.
        seed: of the first episode.
        workers: processes; None: one per core that this process may use. Changes no array.
        **settings: other fields of `recipe.Recipe`.

    Returns:
        The dataset's digest.

    Raises:
        ConfigError: a setting cannot work.
        DataError: the folder holds something else, or the expert keeps failing.
        DiskFullError: there is no room for the episodes that are missing.
        HeldByAnotherError: another process records into the folder.
        RenderError: no OpenGL context can be made, or rendering hangs.
        RecordingError: a worker process died.
        StoreError: the folder cannot be made.
    """
    recipe = Recipe(episodes=episodes, seed=seed, **settings)
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers cannot record: ask for at least one.")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{out} cannot be a folder to record into ({error.strerror}): choose another one.") from error
    with _alone_in(out):
        check_folder(out, recipe)
        if (out / MANIFEST_NAME).exists():
            return read_manifest(out).digest
        _remove_leftovers(out)
        _require_room(out, recipe, missing=recipe.episodes - len(list(out.glob("episode_*.hdf5"))))
        claim_folder(out, recipe)
        entries = _in_parallel(out, recipe, usable_cores() if workers is None else workers)
        manifest = write_manifest(
            out,
            contract=recipe.contract,
            source={"kind": "scripted-expert", "recipe": recipe.to_dict(), "versions": _versions()},
            split=split_episodes([entry.file for entry in entries], VALIDATION_FRACTION, recipe.seed),
            episodes=entries,
        )
    return manifest.digest


def episode_file(index: int) -> str:
    """File name of episode `index`."""
    return f"episode_{index:06d}.hdf5"


def record_episode(out: Path, recipe: Recipe, index: int) -> EpisodeEntry:
    """Record episode `index` unless its file is already there, and describe it for the manifest.

    Raises:
        DataError: the expert failed with every seed that this episode may try.
    """
    path = out / episode_file(index)
    if not path.exists():
        with contextlib.closing(_make_env(recipe)) as env:
            episode = _first_success(env, recipe, index)
        attrs = {"success": True, "seed": episode.seed, "task": TASK, "stage": episode.stage}
        write_episode(path, episode.arrays, recipe.contract, attrs)
    return describe_episode(path)


def _first_success(env: TransferCubeEnv, recipe: Recipe, index: int) -> Demonstration:
    def observe(env: TransferCubeEnv) -> dict[str, np.ndarray]:
        frames = env.render_cameras(recipe.cameras)
        return {image_name(camera): resize_frame(frame, recipe.image_size) for camera, frame in frames.items()}

    for attempt in range(MAX_ATTEMPTS):
        episode = demonstrate(
            env,
            recipe.seed + index + attempt * recipe.episodes,
            duration_scale=recipe.duration_scale,
            noise_std=recipe.noise_std,
            noise_correlation_s=recipe.noise_correlation_s,
            observe=observe,
        )
        if episode.success:
            return episode
    raise DataError(
        f"The expert failed {MAX_ATTEMPTS} times on episode {index} at {recipe.control_hz} Hz with noise_std="
        f"{recipe.noise_std} and duration_scale={recipe.duration_scale}: record slower, or with less noise."
    )


def _make_env(recipe: Recipe) -> TransferCubeEnv:
    height, width = recipe.frame_size
    return TransferCubeEnv(control_hz=recipe.control_hz, require_release=True, frame_height=height, frame_width=width)


def _in_parallel(out: Path, recipe: Recipe, workers: int) -> list[EpisodeEntry]:
    """Record all episodes in spawned processes: an OpenGL context does not survive a fork."""
    pool = ProcessPoolExecutor(
        min(workers, recipe.episodes), multiprocessing.get_context("spawn"), initializer=begin_worker_process
    )
    entries: list[EpisodeEntry] = []
    try:
        waiting = {pool.submit(record_episode, out, recipe, index) for index in range(recipe.episodes)}
        with Progress.start(f"record {recipe.episodes} episodes", recipe.episodes) as progress:
            while waiting:
                finished, waiting = _next_finished(waiting)
                entries += [future.result() for future in finished]
                progress.update(len(entries))
    except BrokenProcessPool as error:
        raise RecordingError(
            f"A process that recorded into {out} died, perhaps for lack of memory: run again, with fewer workers if it "
            "happens again; finished episodes are kept."
        ) from error
    except BaseException:
        # Episodes are whole or not there, so workers need not finish theirs; the pool would also start queued ones.
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        _remove_leftovers(out)
    return entries


def _next_finished(waiting: set[Future]) -> tuple[set[Future], set[Future]]:
    finished, waiting = wait(waiting, timeout=STALL_S, return_when=FIRST_COMPLETED)
    if not finished:
        # Several EGL contexts on one GPU have been seen to block in glReadPixels for ever.
        raise RenderError(
            f"No episode was finished within {STALL_S:.0f} s, so rendering seems to hang: run again with one worker."
        )
    return finished, waiting


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel lets go of however this process ends."""
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeldByAnotherError(
                f"Another process is recording into {out}: wait for it, or choose another folder."
            ) from error
        yield
    finally:
        os.close(folder)


def _remove_leftovers(out: Path) -> None:
    for path in out.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink()


def _require_room(out: Path, recipe: Recipe, missing: int) -> None:
    corner = np.array([scene.CUBE_X_RANGE[0], scene.CUBE_Y_RANGE[0], 0.0])
    rows = len(ScriptedExpert(corner, recipe.control_hz, recipe.duration_scale).actions)
    height, width = recipe.image_size
    needed = missing * rows * len(recipe.cameras) * height * width * 3 * _DISK_MARGIN
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DiskFullError(
            f"{missing} episodes need about {needed / 1e9:.1f} GB in {out} and {free / 1e9:.1f} GB are free: free some "
            "space, record fewer episodes, or choose a folder on another disk."
        )


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("mujoco", scene.ASSET_DISTRIBUTION, "numpy", "pillow")}

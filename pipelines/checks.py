"""What is checked before a campaign's first step: minutes of waiting for a sentence that could have come at once."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipelines.arms import Arm
from roboimi.errors import ConfigError, DataError, DiskFullError, RoboimiError
from roboimi.vla.config import TrainRun
from roboimi.vla.data.import_episodes import ingest
from roboimi.vla.data.manifest import MANIFEST_NAME, DatasetRef, resolve_dataset
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.train_vla import check_against_dataset

GIBIBYTE = 2**30
MEMORY_PER_ARM = 2 * GIBIBYTE
"""What one training or evaluation of the local profile takes, with room to spare."""
DISK_PER_ARM = GIBIBYTE // 2
"""Checkpoints, rollouts and curves of one arm."""
LARGEST_FEATURE = 1152
"""Width of the widest SigLIP2 tower; an upper bound for the size of the cache."""
CGROUP = Path("/sys/fs/cgroup")


class LowMemoryError(RoboimiError):
    """Too little memory for what is about to run."""

    exit_code = 17
    failure_class = "memory"


def find_dataset(text: str) -> DatasetRef:
    """The dataset, given a manifest first where the folder holds episodes without one.

    Raises:
        DataError: there is no such folder, no episode in it, or its content is not the one asked for.
    """
    folder = Path(text).expanduser()
    if folder.is_dir() and not (folder / MANIFEST_NAME).exists():
        if not any(folder.glob("*.hdf5")):
            raise DataError(f"Folder {folder} holds no *.hdf5 episodes: give a folder of episodes with --dataset.")
        ingest(folder)
    return resolve_dataset(text)


def check_arms(arms: Sequence[Arm], shared: Sequence[str], ref: DatasetRef, encoder: str) -> None:
    """Compose the configuration of every arm, so that a misspelled override is found now.

    Raises:
        ConfigError: naming the arm whose overrides do not compose, or contradict the dataset.
    """
    for arm in arms:
        try:
            run = TrainRun.from_overrides([*shared, *arm.overrides], dataset=ref.text, encoder=encoder)
            check_against_dataset(run, ref)
        except ConfigError as error:
            raise ConfigError(f"Arm {arm.name!r}: {error}") from error


def usable_arms(arms: Sequence[Arm], ref: DatasetRef) -> tuple[list[Arm], list[Arm]]:
    """The arms, and apart from them the reference arms that this dataset cannot have.

    A dataset without an environment state, such as one of a real robot, has nothing that a privileged arm could read.
    """
    if ref.contract.environment_state_dim:
        return list(arms), []
    left_out = [arm for arm in arms if "backbone=privileged_state" in arm.overrides]
    return [arm for arm in arms if arm not in left_out], left_out


def check_encoder(text: str) -> str:
    """The encoder's description, once its name is one; an encoder of the hub is fetched by the smoke test.

    Raises:
        EncoderError: it is unknown, or not pinned.
    """
    return EncoderSpec.parse(text).description


def check_disk(folder: Path, ref: DatasetRef, arms: int) -> None:
    """Make sure that the features and the arms' results fit.

    Raises:
        DiskFullError: they do not.
    """
    frames = sum(entry.frames for entry in ref.manifest.episodes)
    needed = frames * ref.contract.num_views * LARGEST_FEATURE * 2 + arms * DISK_PER_ARM
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{folder} has {free / GIBIBYTE:.1f} GiB free and this campaign of {arms} arms may need "
            f"{needed / GIBIBYTE:.1f} GiB: make room, or put the store elsewhere with --store."
        )


def check_memory(arms: int, available: int | None = None) -> None:
    """Make sure that the arms that run side by side fit into memory.

    Args:
        arms: how many run at a time.
        available: bytes; None: what this machine and this process's control group have left.

    Raises:
        LowMemoryError: too little is left.
    """
    available = available_memory() if available is None else available
    needed = arms * MEMORY_PER_ARM
    if available < needed:
        raise LowMemoryError(
            f"Only {available / GIBIBYTE:.1f} GiB of memory are free and {arms} arms at a time take up to "
            f"{needed / GIBIBYTE:.0f} GiB: stop other programs, or lower parallelism in the profile."
        )


def available_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that a new process may use: the machine's, or the control group's where that is less."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return machine
    return min(machine, int(limit.read_text()) - int(used.read_text()))


def check_gl() -> str:
    """The name of the GL renderer, once it has rendered.

    Raises:
        RenderError: there is no GL, or it draws nothing.
    """
    from roboimi.envs.render import gl_renderer

    return gl_renderer()


def check_writable(folder: Path) -> None:
    """Make sure that outputs can be written.

    Raises:
        ConfigError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Folder {folder} cannot be made ({error.strerror}): choose another with --outputs."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"Folder {folder} is not writable: choose another with --outputs.")

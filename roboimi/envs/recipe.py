"""What a recorded dataset follows from, and the file in its folder that says so.

`RECIPE.json` is written before the first episode. A recording that was killed goes on only under the same recipe, and a
finished one is recognised by it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboimi.envs import scene
from roboimi.envs.transfer_cube import DEFAULT_CAMERAS
from roboimi.errors import ConfigError, DataError
from roboimi.storage.atomic import write_json_atomically
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.manifest import MANIFEST_NAME, RECIPE_NAME

TASK = "transfer_cube"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which arrays the episodes hold.

    Attributes:
        episodes: how many.
        seed: episode i first tries seed + i.
        control_hz: rows per second.
        duration_scale: pace of the expert; 1 is slow.
        noise_std: rad, added to the joint targets that are executed, not to those recorded.
        noise_correlation_s: correlation time of that noise.
        cameras: the V views.
        frame_size: (height, width) as rendered.
        image_size: (height, width) as stored.
        version: raised when code changes give other arrays from the same settings.
    """

    episodes: int
    seed: int = 0
    control_hz: int = 25
    duration_scale: float = 0.7
    noise_std: float = 0.01
    noise_correlation_s: float = 0.2
    cameras: tuple[str, ...] = DEFAULT_CAMERAS
    frame_size: tuple[int, int] = (320, 320)
    image_size: tuple[int, int] = (256, 256)
    version: int = 1

    def __post_init__(self):
        if self.episodes < 1:
            raise ConfigError(f"{self.episodes} episodes cannot be recorded: ask for at least one.")
        if self.seed < 0:
            raise ConfigError(f"The recording's seed is {self.seed}: give 0 or a positive number.")
        if not self.cameras:
            raise ConfigError("No camera is to be recorded: name at least one.")

    @property
    def contract(self) -> DatasetContract:
        """What every episode holds."""
        return DatasetContract(
            state_dim=len(scene.STATE_NAMES),
            action_dim=len(scene.STATE_NAMES),
            environment_state_dim=7,
            cameras=tuple(self.cameras),
            image_height=self.image_size[0],
            image_width=self.image_size[1],
            fps=self.control_hz,
            state_names=scene.STATE_NAMES,
            action_names=scene.STATE_NAMES,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"task": TASK, **json.loads(json.dumps(dataclasses.asdict(self)))}


def check_folder(out: Path, recipe: Recipe) -> None:
    """Make sure that what is in `out`, if anything, was recorded by `recipe`.

    Raises:
        DataError: the folder holds a recording of another recipe, or episodes of unknown origin.
    """
    strangers = sorted(path.name for pattern in ("*.hdf5", MANIFEST_NAME) for path in out.glob(pattern))
    if not strangers:
        return
    path = out / RECIPE_NAME
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(
            f"{out} already holds {strangers[0]}, which was not recorded here: choose an empty folder."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): choose another folder, or remove this one.") from error
    wanted = recipe.to_dict()
    if found != wanted:
        differing = sorted(name for name in {*wanted, *found} if found.get(name) != wanted.get(name))
        told = " and ".join(f"{name} {found.get(name)} instead of {wanted.get(name)}" for name in differing)
        raise DataError(f"{out} holds a recording with {told}: choose another folder, or remove this one.")


def claim_folder(out: Path, recipe: Recipe) -> None:
    """Write `RECIPE.json` into a folder that `check_folder` let pass."""
    write_json_atomically(out / RECIPE_NAME, recipe.to_dict())

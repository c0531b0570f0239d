"""The dataset contract: what every episode of a dataset holds, and with which shapes."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

from roboimi.errors import DataError

STORED_IMAGE_SIZE = (256, 256)
"""(height, width) that datasets are recorded and imported at: what the encoder takes."""

_CAMERA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True)
class DatasetContract:
    """Dimensions, cameras and rate that all episodes of one dataset share.

    Attributes:
        state_dim: S, width of `/observations/qpos` (rad; gripper opening 0 closed to 1 open).
        action_dim: A, width of `/action` (absolute joint targets, units of the state).
        environment_state_dim: E, width of `/observations/environment_state`; 0 where episodes have none.
        cameras: names under `/observations/images`; their order is the order of the view axis V.
        image_height: rows of every image as stored.
        image_width: columns of every image as stored.
        fps: rows per second (Hz).
        state_names: S names, one a dimension.
        action_names: A names, one a dimension.
    """

    state_dim: int
    action_dim: int
    environment_state_dim: int
    cameras: tuple[str, ...]
    image_height: int
    image_width: int
    fps: int
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    def __post_init__(self):
        """Check every field and give unnamed dimensions a name.

        Raises:
            DataError: a dimension is not a positive integer, a camera name is unusable or twice there, or the number
                of names is not the number of dimensions.
        """
        for name in ("state_dim", "action_dim", "image_height", "image_width", "fps"):
            _require_integer(name, getattr(self, name), at_least=1)
        _require_integer("environment_state_dim", self.environment_state_dim, at_least=0)
        object.__setattr__(self, "cameras", _names("cameras", self.cameras))
        if len(set(self.cameras)) != len(self.cameras):
            raise DataError(f"Dataset contract names a camera twice in {list(self.cameras)}: name each camera once.")
        for camera in self.cameras:
            if not _CAMERA_NAME.fullmatch(camera):
                raise DataError(
                    f"Dataset contract has the camera name {camera!r}: use at most 64 letters, digits and . _ - only."
                )
        for kind, width in (("state", self.state_dim), ("action", self.action_dim)):
            names = _names(f"{kind}_names", getattr(self, f"{kind}_names")) or _default_names(kind, width)
            if len(names) != width:
                raise DataError(
                    f"Dataset contract has {len(names)} {kind} names for {width} dimensions: name each one."
                )
            object.__setattr__(self, f"{kind}_names", names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of one stored image."""
        return (self.image_height, self.image_width, 3)

    @property
    def num_views(self) -> int:
        """V, the number of cameras."""
        return len(self.cameras)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the contract from a manifest.

        Raises:
            DataError: a field is missing, unknown or unusable.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        required = known - {"state_names", "action_names"}
        if not isinstance(document, Mapping):
            raise DataError(f"Dataset contract is {type(document).__name__}, not an object: write the manifest again.")
        if missing := sorted(required - document.keys()):
            raise DataError(f"Dataset contract lacks {', '.join(missing)}: write the manifest again.")
        if unknown := sorted(document.keys() - known):
            raise DataError(f"Dataset contract has unknown fields {', '.join(unknown)}: write the manifest again.")
        return cls(**document)


def _default_names(kind: str, width: int) -> tuple[str, ...]:
    return tuple(f"{kind}_{index}" for index in range(width))


def _require_integer(name: str, value: Any, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise DataError(f"Dataset contract has {name}={value!r}: give an integer of at least {at_least}.")


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise DataError(f"Dataset contract has {name}={value!r}: give a list of names.")
    return tuple(value)

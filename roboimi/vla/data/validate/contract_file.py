"""The YAML file that says what a dataset must be, and what robot it was recorded with.

    contract: {state_dim: 14, action_dim: 14, cameras: [top, left], fps: 50, image_height: 480, image_width: 640}
    robot: {mjcf: robot.xml, joints: {left_waist: vx300s_left/waist}}
    limits: {min_frames: 50, sim: false, grippers: [6, 13], idle_seconds: 3}

Every part and every field may be left out. `contract` holds fields of `DatasetContract`, `limits` those of `Limits`;
`robot.mjcf` is found from the folder of the YAML file, `robot.joints` names the MJCF's joints where they are called
otherwise than the contract's dimensions.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from roboimi.errors import ConfigError
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.robot import known_limits, with_robot

_PARTS = {"contract", "robot", "limits"}


def read_contract_file(path: Path, ref: DatasetRef) -> Limits:
    """What the dataset at `ref` is to be measured against.

    Raises:
        ConfigError: the file is not there, is no YAML, or has a part or field that is not known.
    """
    document = _read(path)
    given = _part(document, "limits", {field.name for field in dataclasses.fields(Limits)} - {"contract"}, path)
    contract = _part(document, "contract", {field.name for field in dataclasses.fields(DatasetContract)}, path)
    robot = _part(document, "robot", {"mjcf", "joints"}, path)
    limits = Limits(**given, contract=contract or None)
    if not robot:
        return known_limits(ref, limits)
    if not isinstance(robot.get("mjcf"), str) or not isinstance(robot.get("joints", {}), dict):
        raise ConfigError(f"{path} has a robot without an mjcf, or joints that are no mapping: give both as text.")
    ranged = with_robot(limits, path.parent / robot["mjcf"], ref.contract, robot.get("joints", {}))
    return dataclasses.replace(ranged, **{name: getattr(limits, name) for name in given})


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"Contract file {path} cannot be read ({error.strerror}): correct the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"Contract file {path} is no YAML ({reason}): correct it.") from error
    if not isinstance(document, dict) or not document or document.keys() - _PARTS:
        raise ConfigError(
            f"Contract file {path} must have one or more of {', '.join(sorted(_PARTS))} and no other part."
        )
    return document


def _part(document: dict[str, Any], name: str, known: set[str], path: Path) -> dict[str, Any]:
    part = document.get(name) or {}
    if not isinstance(part, dict):
        raise ConfigError(f"Contract file {path} has a part {name} that is no mapping: give fields and values.")
    if unknown := sorted(str(field) for field in part.keys() - known):
        raise ConfigError(
            f"Contract file {path} has {name}.{unknown[0]}, which is unknown: choose among {', '.join(sorted(known))}."
        )
    return part

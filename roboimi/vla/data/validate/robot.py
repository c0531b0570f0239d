"""Joint ranges of a robot, from its MJCF: whose limits they are follows from the data, never from this code.

The joints of an MJCF and the dimensions of a contract rarely share names, so a mapping can be given; without one,
names must be equal. Gripper openings are 0 to 1 by the contract's own rule, whatever the fingers' ranges in metres are.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from roboimi.errors import ConfigError
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.validate.limits import Limits

FREE = 1e9
"""What stands for no limit: JSON has no infinity."""


def known_limits(ref: DatasetRef, limits: Limits | None = None) -> Limits:
    """`limits` with the joint ranges of the robot that recorded the dataset, where its manifest says which it was."""
    limits = limits or Limits()
    source = ref.manifest.source
    recipe = source.get("recipe")
    if source.get("kind") != "scripted-expert" or not isinstance(recipe, dict) or limits.state_low is not None:
        return limits
    from roboimi.envs import scene
    from roboimi.envs.recipe import TASK

    if recipe.get("task") != TASK:
        return limits
    joints = {f"{arm}_{joint}": f"vx300s_{arm}/{joint}" for arm in scene.ARMS for joint in scene.ARM_JOINTS}
    return with_robot(limits, scene.scene_path(), ref.contract, joints)


def with_robot(limits: Limits, mjcf: Path, contract: DatasetContract, joints: Mapping[str, str]) -> Limits:
    """`limits` with the joint ranges of an MJCF.

    Args:
        limits: whose ranges are replaced.
        mjcf: the robot's file.
        contract: names the dimensions.
        joints: name of the MJCF's joint by name of the contract's dimension, where the two differ.

    Raises:
        ConfigError: the file cannot be compiled, or has no joint of a dimension's name.
    """
    ranges = _joint_ranges(mjcf)
    lows, highs = {}, {}
    for kind, names in (("state", contract.state_names), ("action", contract.action_names)):
        found = [_range(name, ranges, joints, limits, index, mjcf) for index, name in enumerate(names)]
        lows[kind] = tuple(low for low, _ in found)
        highs[kind] = tuple(high for _, high in found)
    return dataclasses.replace(
        limits,
        state_low=lows["state"],
        state_high=highs["state"],
        action_low=lows["action"],
        action_high=highs["action"],
    )


def _range(
    name: str,
    ranges: Mapping[str, tuple[float, float]],
    joints: Mapping[str, str],
    limits: Limits,
    index: int,
    mjcf: Path,
) -> tuple[float, float]:
    gripper = index in limits.grippers if limits.grippers is not None else "gripper" in name.lower()
    if gripper and name not in joints:
        return (0.0, 1.0)
    joint = joints.get(name, name)
    if joint not in ranges:
        raise ConfigError(
            f"{mjcf} has no joint {joint!r} for the dimension {name!r}: say under `joints` which of "
            f"{', '.join(sorted(ranges)[:20])} it is."
        )
    return ranges[joint]


def _joint_ranges(mjcf: Path) -> dict[str, tuple[float, float]]:
    import mujoco

    try:
        model = mujoco.MjModel.from_xml_path(str(mjcf))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{mjcf} cannot be compiled as MJCF ({str(error).splitlines()[0]}): correct it.") from error
    return {
        model.joint(index).name: tuple(map(float, model.jnt_range[index]))
        if model.jnt_limited[index]
        else (-FREE, FREE)
        for index in range(model.njnt)
    }

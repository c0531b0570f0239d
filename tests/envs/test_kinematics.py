"""The closed-form kinematics agree with the compiled model, and refuse what the arms cannot do."""

import mujoco
import numpy as np
import pytest

from roboimi.envs import kinematics, scene

PINCH_POINT = np.array([0.142, 0.0, 0.0])  # in the gripper link's frame, m


@pytest.fixture(scope="module")
def model():
    return scene.load_model(16, 16)


def random_joints(rng, count):
    """Joint angles with forearm_roll 0 and the elbow above the line to the wrist, inside the limits."""
    low, high = kinematics.JOINT_LIMITS.T
    joints = rng.uniform(0.9 * low, 0.9 * high, (count, 6))
    joints[:, 3] = 0.0
    joints[:, 0] = rng.uniform(-1.5, 1.5, count)
    joints[:, 1] = rng.uniform(-1.2, 0.8, count)
    joints[:, 2] = rng.uniform(0.2, 1.5, count)
    return joints


@pytest.mark.parametrize("arm", ["left", "right"])
def test_forward_agrees_with_the_model(model, arm):
    data = mujoco.MjData(model)
    start = 0 if arm == "left" else 8
    for joints in random_joints(np.random.default_rng(0), 50):
        data.qpos[start : start + 6] = joints
        mujoco.mj_kinematics(model, data)
        link = data.body(f"vx300s_{arm}/gripper_link")
        axes = link.xmat.reshape(3, 3)
        position, pitch, roll = kinematics.forward(arm, joints)
        np.testing.assert_allclose(position, link.xpos + axes @ PINCH_POINT, atol=1e-4)
        assert np.sin(pitch) == pytest.approx(-axes[2, 0], abs=1e-5)
        assert roll == joints[5]


@pytest.mark.parametrize("arm", ["left", "right"])
def test_joint_limits_are_the_models(model, arm):
    limits = [model.joint(f"vx300s_{arm}/{name}").range for name in scene.ARM_JOINTS]
    np.testing.assert_allclose(kinematics.JOINT_LIMITS, limits)


@pytest.mark.parametrize("arm", ["left", "right"])
def test_inverse_undoes_forward(arm):
    joints = random_joints(np.random.default_rng(1), 500)
    position, pitch, roll = kinematics.forward(arm, joints)
    forward_reach = np.hypot(*(position - kinematics.BASE_POSITION[arm])[:, :2].T)
    in_front = np.abs(kinematics.azimuth(arm, position) - joints[:, 0]) < 1e-9
    wrist_ahead = forward_reach > kinematics.HAND_LENGTH * np.cos(pitch)
    usable = in_front & wrist_ahead
    assert usable.sum() > 100
    solved = kinematics.inverse(arm, position[usable], pitch[usable], roll[usable])
    np.testing.assert_allclose(solved, joints[usable], atol=1e-9)


def test_vertical_grasp_closes_the_fingers_along_y(model):
    data = mujoco.MjData(model)
    for x, y in [(0.0, 0.4), (0.2, 0.4), (0.0, 0.6), (0.1, 0.47)]:
        position = np.array([x, y, 0.02])
        turn = kinematics.azimuth("right", position)
        data.qpos[8:14] = kinematics.inverse("right", position, np.pi / 2, turn)
        mujoco.mj_kinematics(model, data)
        link = data.body("vx300s_right/gripper_link")
        approach, fingers, _ = link.xmat.reshape(3, 3).T
        np.testing.assert_allclose(approach, [0, 0, -1], atol=1e-4)
        np.testing.assert_allclose(np.abs(fingers), [0, 1, 0], atol=1e-4)
        np.testing.assert_allclose(link.xpos + 0.142 * approach, position, atol=1e-4)


@pytest.mark.parametrize("position", [(-0.8, 0.5, 0.1), (0.46, 0.5, 0.35), (0.1, 0.5, 1.2)])
def test_out_of_reach_is_one_sentence(position):
    with pytest.raises(kinematics.UnreachableError, match=r"^The right arm cannot bring its gripper to x=.*\.$"):
        kinematics.inverse("right", np.array(position), np.pi / 2, 0.0)


def test_one_bad_pose_among_many_is_named():
    positions = np.array([[0.1, 0.5, 0.05], [0.1, 0.5, 1.3], [0.1, 0.5, 0.1]])
    with pytest.raises(kinematics.UnreachableError, match=r"z=1\.300"):
        kinematics.inverse("right", positions, np.full(3, np.pi / 2), np.zeros(3))

"""Writes the dataset beside this file with the lerobot package; run it where that is installed, not here.

python write.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

FPS = 25
LENGTHS = (11, 7, 13)
SIZE = (64, 96)
CAMERAS = ("cam_high", "cam_left_wrist")
NAMES = ["waist", "shoulder", "elbow", "gripper"]


def rows():
    """(T, 4) float32 state and action of every episode, from one stream of random numbers."""
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        both = rng.normal(size=(length, 2, 4)).astype(np.float32)
        yield both[:, 0], both[:, 1]


def picture(camera: str, episode: int, frame: int) -> np.ndarray:
    """(64, 96, 3) uint8: a ramp, and a red (or, for the wrist, blue) square that moves to the right."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    image = np.stack([x * 2, y * 3, np.full_like(x, 40 * episode)], axis=-1)
    left = 4 + 5 * frame
    if camera == "cam_high":
        image[10:26, left : left + 16] = (255, 30, 20)
    else:
        image = image[::-1].copy()
        image[30:46, left : left + 16] = (20, 40, 250)
    return image.clip(0, 255).astype(np.uint8)


def write(root: Path) -> None:
    """Record the three episodes as a user of lerobot does."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    camera = {"dtype": "video", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": NAMES},
        "action": {"dtype": "float32", "shape": (4,), "names": {"motors": NAMES}},
        **{f"observation.images.{name}": dict(camera) for name in CAMERAS},
    }
    dataset = LeRobotDataset.create("local/tiny", FPS, features, root=root, robot_type="aloha", use_videos=True)
    for episode, (states, actions) in enumerate(rows()):
        for frame, (state, action) in enumerate(zip(states, actions, strict=True)):
            pictures = {f"observation.images.{name}": picture(name, episode, frame) for name in CAMERAS}
            dataset.add_frame({"observation.state": state, "action": action, **pictures, "task": "transfer the cube"})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    write(Path(sys.argv[1]))

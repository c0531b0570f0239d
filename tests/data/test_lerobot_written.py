"""Protects the import of what the lerobot package itself writes; `lerobot_v3/README.md` says how it was written."""

from pathlib import Path

import numpy as np

from roboimi.vla.data.episode import EpisodeFile
from roboimi.vla.data.lerobot_import import import_lerobot
from tests.data.lerobot_v3 import write

ROOT = Path(__file__).parent / "lerobot_v3" / "dataset"


def psnr(image, drawn):
    return 10 * np.log10(255**2 / ((image.astype(float) - drawn) ** 2).mean())


def test_a_dataset_that_lerobot_wrote_is_read_exactly(tmp_path):
    ref = import_lerobot(ROOT, tmp_path / "out", image_size=None)
    assert [entry.frames for entry in ref.manifest.episodes] == list(write.LENGTHS)
    assert (ref.contract.fps, ref.contract.cameras) == (write.FPS, write.CAMERAS)
    assert ref.contract.state_names == ref.contract.action_names == tuple(write.NAMES)
    for number, (entry, (state, action)) in enumerate(zip(ref.manifest.episodes, write.rows(), strict=True)):
        with EpisodeFile(ref.path(entry), ref.contract) as episode:
            assert np.array_equal(episode.state(), state)
            assert np.array_equal(episode.action(), action)
            assert np.allclose(episode.timestamp(), np.arange(entry.frames) / write.FPS, rtol=0, atol=1e-6)
            for frame, views in enumerate(episode.images(range(entry.frames))):
                for camera, image in zip(write.CAMERAS, views, strict=True):
                    right = psnr(image, write.picture(camera, number, frame))
                    other = psnr(image, write.picture(camera, number, frame + 1))
                    assert right > 20, (camera, number, frame, right)
                    assert right > other + 1, (camera, number, frame, right, other)

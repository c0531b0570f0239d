"""Protects how the stand-in's weights begin: smooth, complete bases, and the same from the same seed."""

import numpy as np
import torch

from roboimi.vla.standin.tower import TOWER, grid_waves, initial_tower, patch_filters


def test_patch_filters_are_orthonormal_and_hold_the_mean_colour():
    filters = patch_filters(192, 32).reshape(192, -1)
    np.testing.assert_allclose(filters @ filters.T, np.eye(192), atol=1e-5)
    # A patch of one colour is in their span: nothing of it is lost.
    flat = np.broadcast_to(np.array([0.9, -0.3, 0.1])[:, None, None], (3, 32, 32)).reshape(-1)
    np.testing.assert_allclose(filters.T @ (filters @ flat), flat, atol=1e-5)


def test_patch_filters_keep_the_picture_of_a_blob_and_noise_filters_lose_it():
    rng = np.random.default_rng(0)
    blobs = np.zeros((50, 3, 32, 32), np.float32)
    for blob, (row, column) in zip(blobs, rng.integers(0, 20, (50, 2)), strict=True):
        blob[0, row : row + 12, column : column + 12] = 1.0
    blobs = blobs.reshape(50, -1)

    def kept(filters: np.ndarray) -> float:
        basis = np.linalg.qr(filters.reshape(len(filters), -1).T)[0]
        return float(np.sum((blobs @ basis) ** 2) / np.sum(blobs**2))

    assert kept(patch_filters(192, 32)) > 0.8
    assert kept(rng.standard_normal((192, 3, 32, 32))) < 0.1


def test_grid_waves_tell_all_patches_apart():
    waves = grid_waves(192, 8, seed=0)
    assert waves.shape == (64, 192)
    distances = np.linalg.norm(waves[:, None] - waves[None], axis=-1) + 10 * np.eye(64)
    assert distances.min() > 1


def test_initial_tower_follows_from_its_seed_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = initial_tower(0), initial_tower(0), initial_tower(1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.probe, other.head.probe)
    assert first.config.hidden_size == TOWER["hidden_size"]

"""Smoke test of the frozen encoder: does it work, is what training reads what rollouts see, and is it blind?

Everything here happens before a single step is trained, on frames of the dataset itself:

    1. the tower loads and gives finite features
    2. the cached path (float16 on disk) gives the policy what the online path gives it
    3. the environment renders, and its frames reach the tower at the tower's size
    4. a linear probe from pooled features to the cube's position; features that say nothing of it are a warning

The result is committed under `smoke/<key>/RESULT.json`, so a second campaign adopts it.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from roboimi.errors import EncoderError
from roboimi.progress import Progress
from roboimi.storage.keys import PREFIX_LENGTH, sha256_json
from roboimi.storage.store import Store
from roboimi.vla.config import TaskConfig
from roboimi.vla.data.feature_cache import FeatureCache, store_episode
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.models.staged_weights import find_staged

ALGORITHM = 1
"""Raised by one when the test itself changes; part of the key."""

RESULT = "RESULT.json"
PARITY_FRAMES = 4
PARITY_TOLERANCE = 4e-3
"""Largest difference between the two paths, as a fraction of the largest feature: float16 has 11 bits, and batches of
different shapes differ in the last bits of their products."""
PROBE_FRAMES = 360
BLIND_R2 = 0.2
"""Below this, for both axes of the table, the features are called blind."""
ENCODE_BATCH = 8


@dataclasses.dataclass(frozen=True)
class SmokeTest:
    """A passed smoke test.

    Attributes:
        document: what was measured: `encoder`, `standin`, `encoder_digest`, `staged_weights` (digest of the manifest
            that the weights were read by, or None), `feature_dim`, `frames`, `parity` (largest relative difference),
            `frame_size` and `encoder_size` (height, width), `renderer`, `probe` (or None), `warnings` (sentences).
        recognised: whether this is the committed result of an earlier one.
    """

    document: dict[str, Any]
    recognised: bool

    @property
    def sentence(self) -> str:
        """The result in a few words."""
        probe = self.document["probe"]
        seen = f"position within {probe['median_cm'][0]} x {probe['median_cm'][1]} cm" if probe else "not probed"
        blind = ", nearly blind" if any("blind" in warning for warning in self.document["warnings"]) else ""
        return f"{self.document['encoder']}, {seen}{blind}, {self.document['renderer']}"


def smoke_prefix(dataset_digest: str, encoder_digest: str, task: TaskConfig) -> str:
    """Where the result lies in the store."""
    key = {"algorithm": ALGORITHM, "dataset": dataset_digest, "encoder": encoder_digest}
    return f"smoke/{sha256_json(key | {'task': dataclasses.asdict(task)})[:PREFIX_LENGTH]}"


def smoke_test_encoder(store: Store, ref: DatasetRef, encoder: str, task: TaskConfig) -> SmokeTest:
    """Run the smoke test, or recognise that it passed before.

    Args:
        store: where the result is kept.
        ref: the dataset, whose images are the encoder's input.
        encoder: name of the tower, see `EncoderSpec.parse`.
        task: the environment that rollouts will run in.

    Raises:
        EncoderError: it does not load, or one of the checks 1 to 3 fails.
        RenderError: there is no GL.
        ConfigError: the environment is not the task's.
        DataError: the episodes cannot be read.
    """
    spec = EncoderSpec.parse(encoder)
    prefix = smoke_prefix(ref.digest, spec.digest, task)
    done = store.committed(prefix, RESULT)
    if done is not None:
        return SmokeTest(done, recognised=True)
    return SmokeTest(store.publish(prefix, RESULT, _run(ref, spec, task)), recognised=False)


def _run(ref: DatasetRef, spec: EncoderSpec, task: TaskConfig) -> dict[str, Any]:
    from roboimi.vla.models.backbones import SigLIP2DiffusionBackbone
    from roboimi.vla.models.encoder import load_vision_model

    model = load_vision_model(spec)
    size = (model.config.image_size, model.config.image_size)
    backbone = SigLIP2DiffusionBackbone(
        num_views=ref.contract.num_views, vision_model=model, eval_image_resize_shape=size
    ).eval()
    images, positions, groups = _frames(ref, PROBE_FRAMES, size)
    features = _encode(backbone, images)  # (n, V, D)
    if not np.isfinite(features).all():
        raise EncoderError(f"The encoder {spec.name} gives features that are not finite: use other weights.")
    probe, warnings = _probe(features, positions, groups)
    return {
        "encoder": spec.description,
        "standin": spec.is_standin,
        "encoder_digest": spec.digest,
        "staged_weights": staged[1].digest if (staged := find_staged(spec)) else None,
        "feature_dim": backbone.feature_dim,
        "frames": len(images),
        "parity": check_parity(backbone, images[:PARITY_FRAMES]),
        **check_rollout_path(backbone, task),
        "probe": probe,
        "warnings": warnings,
    }


def check_parity(backbone: Any, images: np.ndarray) -> float:
    """Make sure that features from the cache are what the tower says online.

    Args:
        backbone: a `SigLIP2DiffusionBackbone` with its tower.
        images: (n, V, H, W, 3) uint8 of the dataset.

    Returns:
        The largest difference of the projected condition, as a fraction of the largest value.

    Raises:
        EncoderError: it is larger than `PARITY_TOLERANCE`.
    """
    import torch

    entry = EpisodeEntry("episode_000000.hdf5", "", 0, len(images))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        stored = store_episode(Path(folder), entry, _encode(backbone, images))
        cache = FeatureCache(Path(folder), {"episodes": [stored.to_dict()], "feature_dim": backbone.feature_dim})
        cached = torch.from_numpy(np.array(cache.episode(entry.file)))
        from_cache = backbone({"features": cached[None]})
        # One frame at a time: how a rollout asks, and another batch shape than the cache was made with.
        online = torch.cat([backbone({"images": torch.from_numpy(image[None, None])}) for image in images], dim=1)
    difference = float((from_cache - online).abs().max() / online.abs().max().clamp_min(1e-12))
    if not difference <= PARITY_TOLERANCE:
        raise EncoderError(
            f"The policy would be trained on other features than it sees in rollouts (cached and online differ by "
            f"{difference:.2g} of the largest value): remove the feature cache, or use another encoder."
        )
    return difference


def check_rollout_path(backbone: Any, task: TaskConfig) -> dict[str, Any]:
    """Make sure that the environment's frames are rendered, resized to the tower's size, and encoded.

    Returns:
        `frame_size` of the environment, `encoder_size` after the resize, and the GL `renderer`.

    Raises:
        RenderError: there is no GL.
        ConfigError: the environment is not the task's.
        EncoderError: frames do not reach the tower at its size, or their features are not finite.
    """
    import torch

    from roboimi.envs.render import gl_renderer
    from roboimi.vla.rollouts.episode import EpisodeSlot
    from roboimi.vla.rollouts.task_env import ObservationView, check_environment, env_factory, render_frames

    size = backbone.eval_image_resize_shape
    view = ObservationView(obs_horizon=1, needs="images", cameras=task.cameras, image_shape=size)
    make_env = env_factory(task)
    env = make_env()
    try:
        check_environment(env, task, view)
        frame_size = render_frames(env, task.cameras)[0].shape[:2]
    finally:
        env.close()
    slot = EpisodeSlot(make_env, view, pred_horizon=1, num_action_steps=1)
    try:
        slot.start(seed=0)
        if slot.outcome is not None:
            raise EncoderError(f"The environment {task.env_id} gives no frame to encode: {slot.outcome.reason}.")
        images = slot.observation()["images"]  # (1, V, H, W, 3)
    finally:
        slot.close()
    if images.shape[2:4] != tuple(size):
        raise EncoderError(
            f"Rollout frames of {frame_size} reach the encoder as {images.shape[2:4]}, not {tuple(size)}: resize them "
            "with roboimi.envs.images.resize_frame."
        )
    if not torch.isfinite(backbone.encode_images(torch.from_numpy(images))).all():
        raise EncoderError(f"The encoder gives features of {task.env_id} that are not finite: use other weights.")
    return {"frame_size": list(frame_size), "encoder_size": list(images.shape[2:4]), "renderer": gl_renderer()}


def _frames(ref: DatasetRef, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """About `count` frames, spread evenly over the training episodes and within each.

    Returns:
        Images (n, V, H, W, 3) uint8 of the tower's `size`; cube positions (n, 3) in m, or None where the dataset has
        none; which episode (n,).
    """
    dataset = SimpleRobotDataset(ref, obs_horizon=1, pred_horizon=1, vision="images", image_resize_shape=size)
    lengths = dataset.index.episode_frames
    chosen = _spread(len(lengths), count // 3)
    images, positions, groups = [], [], []
    for episode in chosen:
        rows = _spread(int(lengths[episode]), max(1, count // len(chosen)))
        images.append(dataset.images(episode, rows))
        groups.append(np.full(len(rows), episode))
        if ref.contract.environment_state_dim >= 3:
            positions.append(dataset.low_dim(episode).environment_state[rows, :3])
    dataset.close()
    return np.concatenate(images), np.concatenate(positions) if positions else None, np.concatenate(groups)


def _spread(of: int, count: int) -> np.ndarray:
    """At most `count` numbers, evenly over [0, of)."""
    return np.unique(np.linspace(0, of - 1, min(count, of)).astype(int))


def _encode(backbone: Any, images: np.ndarray) -> np.ndarray:
    """(n, V, H, W, 3) uint8 -> (n, V, D) float32."""
    import torch

    parts = []
    with Progress.start("encoder smoke test", total=len(images)) as progress:
        for start in range(0, len(images), ENCODE_BATCH):
            batch = torch.from_numpy(images[start : start + ENCODE_BATCH])
            parts.append(backbone.encode_images(batch).float().numpy())
            progress.update(min(start + ENCODE_BATCH, len(images)))
    return np.concatenate(parts)


def _probe(
    features: np.ndarray, positions: np.ndarray | None, groups: np.ndarray
) -> tuple[dict[str, Any] | None, list[str]]:
    from roboimi.vla.linear_probe import MIN_GROUPS, linear_probe

    if positions is None:
        return None, ["The dataset has no environment state, so whether the encoder sees the object was not measured."]
    if len(np.unique(groups)) < MIN_GROUPS:
        return None, [f"Fewer than {MIN_GROUPS} episodes: whether the encoder sees the object was not measured."]
    result = linear_probe(features.reshape(len(features), -1), positions, groups)
    probe = {
        "axes": ["x", "y", "z"],
        "r2": [round(value, 3) for value in result.r2],
        "median_cm": [round(100 * value, 2) for value in result.median_error],
        "chance_cm": [round(100 * value, 2) for value in result.chance_error],
        "train_frames": result.train_rows,
        "test_frames": result.test_rows,
    }
    if max(result.r2[:2]) < BLIND_R2:
        explained = " and ".join(f"{value:.2f}" for value in result.r2[:2])
        return probe, [
            f"The encoder is nearly blind to the object: a linear probe explains {explained} of its x and y (1 is "
            "perfect), so expect the image arms to do no better than the blind one."
        ]
    return probe, []

"""Protects the encoding: equal to the encoder itself, resumed after a kill, never mixed up, cheap to recognise."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig

from roboimi.errors import ConfigError, DataError, EncoderError
from roboimi.progress import progress_file
from roboimi.storage.store import open_store
from roboimi.vla import encode_features as module
from roboimi.vla.data.dataset_store import push_dataset
from roboimi.vla.data.feature_cache import COMMIT_NAME, open_feature_cache
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.encode_features import encode_features
from roboimi.vla.models.backbones import SigLIP2DiffusionBackbone
from roboimi.vla.models.encoder import load_vision_model, random_vision_model
from roboimi.vla.models.encoder_spec import EncoderSpec

SIZE, WIDTH = 32, 24


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Two folders with small real SigLIP towers of different weights."""
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    folders = [tmp_path_factory.mktemp(f"encoder_{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        random_vision_model(config, seed).save_pretrained(folder)
    return [str(folder) for folder in folders]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def ref(tiny_dataset_maker):
    return tiny_dataset_maker(image_size=(SIZE, SIZE), frames=[5, 9, 7, 6], episodes=4)


def digest(encoder):
    return EncoderSpec.parse(encoder).digest


def bytes_of(store, encoded):
    folder = store.folder(encoded.prefix)
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_stored_features_are_those_of_the_encoder_for_each_image_alone(store, ref, encoders):
    encoded = encode_features(store, ref, encoders[0], batch_size=10)
    assert (encoded.encoded_episodes, encoded.recognised) == (4, False)
    cache = open_feature_cache(store, ref.digest, digest(encoders[0]))
    backbone = SigLIP2DiffusionBackbone(
        vision_model=load_vision_model(encoders[0]), eval_image_resize_shape=(SIZE, SIZE)
    )
    dataset = SimpleRobotDataset(ref, None, obs_horizon=1, pred_horizon=1)
    window = 0
    for entry in ref.manifest.episodes:
        stored = cache.episode(entry.file)
        assert stored.shape == (entry.frames, 3, WIDTH)
        for frame in range(entry.frames):
            for view in range(3):
                image = torch.from_numpy(dataset[window]["images"][0, view])
                online = backbone.encode_images(image[None])[0].numpy()
                np.testing.assert_allclose(stored[frame, view], online, rtol=2e-3, atol=2e-3)
            window += 1
    assert np.ptp(np.asarray(cache.episode("episode_000000.hdf5"), np.float32), axis=0).max() > 1e-3


def test_the_commit_says_what_the_cache_is(store, ref, encoders):
    document = encode_features(store, ref, encoders[0]).document
    assert document["dataset_digest"] == ref.digest
    assert document["encoder"]["digest"] == digest(encoders[0])
    assert not document["encoder"]["is_standin"]
    assert (document["num_views"], document["feature_dim"], document["dtype"]) == (3, WIDTH, "float16")
    assert document["resize"] == f"none (native {SIZE}x{SIZE})"
    assert document["frames"] == 27
    assert 0 < document["parity"]["max_relative_error"] < document["parity"]["tolerance"]


def test_batch_size_changes_no_feature_beyond_rounding(tmp_path, ref, encoders):
    caches = []
    for batch_size in (1, 64):
        store = open_store(tmp_path / f"store_{batch_size}")
        encode_features(store, ref, encoders[0], batch_size=batch_size)
        caches.append(open_feature_cache(store, ref.digest, digest(encoders[0])))
    for entry in ref.manifest.episodes:
        one, many = (np.asarray(cache.episode(entry.file), np.float32) for cache in caches)
        np.testing.assert_allclose(one, many, rtol=2e-3, atol=1e-3)


def encode_two_episodes_then_die(store, ref, encoder):
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    write, written = module.store_episode, []

    def store_then_die(*arguments):
        written.append(write(*arguments))
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return written[-1]

    module.store_episode = store_then_die
    encode_features(store, ref, encoder)


def test_a_killed_run_goes_on_with_the_missing_episodes(store, ref, encoders, tmp_path):
    arguments = (store, ref, encoders[0])
    child = multiprocessing.get_context("fork").Process(target=encode_two_episodes_then_die, args=arguments)
    child.start()
    child.join(timeout=120)
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match="encode them first"):
        open_feature_cache(store, ref.digest, digest(encoders[0]))
    resumed = encode_features(store, ref, encoders[0])
    assert resumed.encoded_episodes == 2
    whole = open_store(tmp_path / "whole")
    uninterrupted = encode_features(whole, ref, encoders[0])
    assert uninterrupted.encoded_episodes == 4
    for entry in ref.manifest.episodes:
        stem = entry.file.removesuffix(".hdf5")
        one, other = (
            np.load(s.folder(e.prefix) / f"{stem}.npy") for s, e in ((store, resumed), (whole, uninterrupted))
        )
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=2e-3, atol=1e-3)


def test_a_damaged_file_of_an_unfinished_cache_is_made_again(store, ref, encoders):
    encoded = encode_features(store, ref, encoders[0])
    good = bytes_of(store, encoded)
    folder = store.folder(encoded.prefix)
    (folder / COMMIT_NAME).unlink()
    damaged = bytearray(good["episode_000002.npy"])
    damaged[-1] ^= 1
    (folder / "episode_000002.npy").write_bytes(damaged)
    again = encode_features(store, ref, encoders[0])
    assert again.encoded_episodes == 1
    assert bytes_of(store, again) == good


def test_a_finished_cache_is_recognised_without_loading_the_encoder(store, ref, encoders):
    encode_features(store, ref, encoders[0])
    script = textwrap.dedent(f"""
        import sys
        from roboimi.storage.store import open_store
        from roboimi.vla.data.manifest import resolve_dataset
        from roboimi.vla.encode_features import encode_features

        encoded = encode_features(open_store({store.uri!r}), resolve_dataset({ref.text!r}), {encoders[0]!r})
        assert encoded.recognised and encoded.encoded_episodes == 0, encoded
        assert encoded.document["frames"] == 27
        assert not {{"torch", "transformers"}} & set(sys.modules)
    """)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_another_encoder_gets_a_cache_of_its_own(store, ref, encoders):
    first = encode_features(store, ref, encoders[0])
    with pytest.raises(DataError, match="encode them first"):
        open_feature_cache(store, ref.digest, digest(encoders[1]))
    second = encode_features(store, ref, encoders[1])
    assert first.prefix != second.prefix
    assert not second.recognised
    assert bytes_of(store, first) != bytes_of(store, second)


def test_shards_make_the_same_cache_and_the_last_one_commits(store, ref, encoders, tmp_path):
    first = encode_features(store, ref, encoders[0], shard=(0, 2))
    assert (first.encoded_episodes, first.document) == (2, None)
    second = encode_features(store, ref, encoders[0], shard=(1, 2))
    assert second.encoded_episodes == 2
    whole = open_store(tmp_path / "whole")
    assert bytes_of(whole, encode_features(whole, ref, encoders[0])) == bytes_of(store, second)
    assert encode_features(store, ref, encoders[0], shard=(0, 2)).recognised


def test_shards_of_two_machines_meet_in_the_store(store, ref, encoders, bucket, tmp_path, monkeypatch):
    uri = f"s3://{bucket}/store"
    text = push_dataset(ref, f"s3://{bucket}/datasets/tiny")
    for index, fetched in ((0, 2), (1, 4)):
        monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / f"machine{index}"))
        pushed = resolve_dataset(text)
        encoded = encode_features(open_store(uri), pushed, encoders[0], shard=(index, 2))
        assert encoded.encoded_episodes == 2
        here = [entry for entry in pushed.manifest.episodes if pushed.path(entry).exists()]
        assert len(here) == fetched  # the second one commits, and compares windows of all episodes
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "a third"))
    cache = open_feature_cache(open_store(uri), ref.digest, digest(encoders[0]))
    encode_features(store, ref, encoders[0])
    for entry in ref.manifest.episodes:
        own = open_feature_cache(store, ref.digest, digest(encoders[0])).episode(entry.file)
        np.testing.assert_array_equal(cache.episode(entry.file), own)


def test_parity_stops_a_cache_that_differs_from_the_encoder(store, ref, encoders, monkeypatch):
    encode_episode = module._Tower.encode_episode

    def shifted_by_a_frame(self, entry):
        return np.roll(encode_episode(self, entry), 1, axis=0)

    monkeypatch.setattr(module._Tower, "encode_episode", shifted_by_a_frame)
    with pytest.raises(EncoderError, match="differ from the encoder's"):
        encode_features(store, ref, encoders[0])
    with pytest.raises(DataError, match="encode them first"):
        open_feature_cache(store, ref.digest, digest(encoders[0]))


def test_an_encoder_that_gives_nan_is_refused(store, ref, encoders, tmp_path):
    model = load_vision_model(encoders[0])
    (bias,) = (value for name, value in model.named_parameters() if name.endswith("post_layernorm.bias"))
    bias.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(EncoderError, match="not finite"):
        encode_features(store, ref, str(tmp_path / "broken"))


def test_other_sizes_are_resized_as_in_rollouts_and_the_commit_says_so(store, tiny_dataset_maker, encoders):
    from roboimi.envs.images import resize_frame

    ref = tiny_dataset_maker(image_size=(48, 64), frames=3, episodes=2)
    document = encode_features(store, ref, encoders[0]).document
    assert document["resize"] == f"resize_frame 48x64 to {SIZE}x{SIZE}"
    backbone = SigLIP2DiffusionBackbone(
        vision_model=load_vision_model(encoders[0]), eval_image_resize_shape=(SIZE, SIZE)
    )
    entry = ref.manifest.episodes[0]
    native = SimpleRobotDataset(ref, None, obs_horizon=1, pred_horizon=1)[0]["images"][0, 1]
    online = backbone.encode_images(torch.tensor(resize_frame(native, (SIZE, SIZE)))[None])[0].numpy()
    stored = open_feature_cache(store, ref.digest, digest(encoders[0])).episode(entry.file)[0, 1]
    np.testing.assert_allclose(stored, online, rtol=2e-3, atol=2e-3)


def test_progress_counts_frames(store, ref, encoders, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("ROBOIMI_PROGRESS", str(tmp_path))
    write = module.store_episode

    def look(*arguments):
        seen.append(json.loads(progress_file(tmp_path, os.getpid()).read_text()))
        return write(*arguments)

    monkeypatch.setattr(module, "store_episode", look)
    encode_features(store, ref, encoders[0])
    assert seen[0]["label"] == "encode"
    assert seen[0]["total"] == 27


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"shard": (2, 2)}, {"shard": (-1, 2)}])
def test_impossible_options_are_refused(store, ref, encoders, options):
    with pytest.raises(ConfigError, match="impossible"):
        encode_features(store, ref, encoders[0], **options)

"""Protects the manifest: it names the content byte for byte, is written last, and is read strictly."""

import json

import pytest

from roboimi.errors import DataError
from roboimi.storage.keys import sha256_file, sha256_json
from roboimi.vla.data.manifest import (
    MANIFEST_NAME,
    describe_episode,
    read_manifest,
    resolve_dataset,
    split_episodes,
    write_manifest,
)


@pytest.fixture
def ref(tiny_dataset_maker):
    return tiny_dataset_maker(image_size=(8, 8), frames=5)


def change_manifest(ref, change):
    path = ref.root / MANIFEST_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_manifest_describes_the_files(ref):
    for entry in ref.manifest.episodes:
        assert entry.sha256 == sha256_file(ref.path(entry))
        assert entry.bytes == ref.path(entry).stat().st_size
        assert entry.frames == 5
    assert ref.manifest.layout["arrays"] == sorted(
        ["action", *(f"observations/{n}" for n in ("qpos", "qvel", "timestamp", "environment_state"))]
        + [f"observations/images/{c}" for c in ("top", "left", "right")]
    )


def test_the_digest_is_that_of_the_file(ref):
    document = json.loads((ref.root / MANIFEST_NAME).read_text())
    assert ref.digest == sha256_json(document)
    assert read_manifest(ref.root) == ref.manifest


def test_one_byte_of_one_episode_changes_the_digest(ref):
    path = ref.path(ref.manifest.episodes[1])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    manifest = ref.manifest
    again = write_manifest(ref.root, contract=ref.contract, source=manifest.source, split=manifest.split)
    assert again.digest != ref.digest
    assert again.episodes[0] == manifest.episodes[0]
    assert again.episodes[1].sha256 != manifest.episodes[1].sha256


def test_a_reference_with_the_right_digest_is_found_again(ref):
    again = resolve_dataset(ref.text)
    assert again == ref
    assert again.text == f"{ref.root}@sha256:{ref.digest}"


def test_another_digest_is_refused(ref):
    with pytest.raises(DataError, match="has changed, or is another"):
        resolve_dataset(f"{ref.root}@sha256:{'0' * 64}")
    with pytest.raises(DataError, match="64 hex digits"):
        resolve_dataset(f"{ref.root}@sha256:{ref.digest[:12]}")


def test_missing_folder_and_missing_manifest_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        resolve_dataset(tmp_path / "none")
    with pytest.raises(DataError, match="has no MANIFEST"):
        resolve_dataset(tmp_path)


def test_damaged_manifest_is_one_sentence(ref):
    (ref.root / MANIFEST_NAME).write_text('{"schema": ')
    with pytest.raises(DataError, match="is not JSON"):
        resolve_dataset(ref.root)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(schema="roboimi.dataset/0"), "schema"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("layout"), "layout"),
        (lambda d: d["split"].update(test=[]), "split"),
        (lambda d: d["split"].update(train=["../../etc/passwd"]), "passwd"),
        (lambda d: d["episodes"][0].update(file="sub/episode_000000.hdf5"), "sub/episode"),
        (lambda d: d["episodes"][0].update(sha256="short"), "SHA-256"),
        (lambda d: d["episodes"][0].update(frames="5"), "frames"),
        (lambda d: d["episodes"][0].pop("bytes"), "fields"),
        (lambda d: d["contract"].update(fps=0), "fps"),
    ],
)
def test_manifests_are_read_strictly(ref, change, word):
    change_manifest(ref, change)
    with pytest.raises(DataError, match=word):
        resolve_dataset(ref.root)


@pytest.mark.parametrize(
    ("split", "word"),
    [
        ({"train": [], "validation": ["episode_000000.hdf5"]}, "no training episode"),
        ({"train": ["episode_000000.hdf5"], "validation": ["episode_000000.hdf5"]}, "twice"),
        ({"train": ["episode_000000.hdf5"], "validation": []}, "other episodes than were described"),
    ],
)
def test_a_split_that_cannot_be_is_not_written(ref, split, word):
    (ref.root / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match=word):
        write_manifest(ref.root, contract=ref.contract, source={}, split=split, episodes=ref.manifest.episodes)
    assert not (ref.root / MANIFEST_NAME).exists()


def test_a_missing_episode_leaves_no_manifest(ref):
    (ref.root / MANIFEST_NAME).unlink()
    ref.path(ref.manifest.episodes[2]).unlink()
    with pytest.raises(DataError, match="episode_000002"):
        write_manifest(ref.root, contract=ref.contract, source={}, split=ref.manifest.split)
    assert not (ref.root / MANIFEST_NAME).exists()


def test_episodes_described_by_their_writers_are_taken_in_any_order(ref):
    entries = [describe_episode(ref.path(entry)) for entry in reversed(ref.manifest.episodes)]
    again = write_manifest(
        ref.root, contract=ref.contract, source=ref.manifest.source, split=ref.manifest.split, episodes=entries
    )
    assert again == ref.manifest


def test_split_is_by_episode_disjoint_whole_and_the_same_every_time():
    files = [f"episode_{index:06d}.hdf5" for index in range(50)]
    split = split_episodes(files, 0.1, seed=3)
    assert len(split["validation"]) == 5
    assert sorted(split["train"] + split["validation"]) == files
    assert split == split_episodes(files[::-1], 0.1, seed=3)
    assert split != split_episodes(files, 0.1, seed=4)


def test_small_splits_keep_something_to_train_on():
    assert split_episodes(["episode_0.hdf5"]) == {"train": ["episode_0.hdf5"], "validation": []}
    assert len(split_episodes(["episode_0.hdf5", "episode_1.hdf5"], 0.9)["train"]) == 1
    assert split_episodes(["episode_0.hdf5", "episode_1.hdf5"], 0.0)["validation"] == []
    assert len(split_episodes(["episode_0.hdf5", "episode_1.hdf5"], 0.01)["validation"]) == 1


def test_entries_follow_the_split(ref):
    train = [entry.file for entry in ref.manifest.entries("train")]
    assert train == list(ref.manifest.split["train"])
    with pytest.raises(DataError, match="no split 'test'"):
        ref.manifest.entries("test")

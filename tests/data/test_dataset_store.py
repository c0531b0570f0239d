"""Datasets in a store: named by content, pushed and pulled byte for byte, damage and foreign bytes found."""

import shutil
import subprocess
import sys

import pytest

from roboimi.cli import main
from roboimi.errors import ConfigError, DataError
from roboimi.storage.store import open_store
from roboimi.vla.data.dataset_store import EPISODES, pull_dataset, push_dataset, verify_pushed
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return f"file://{tmp_path}/store/cube"
    return f"s3://{request.getfixturevalue('bucket')}/datasets/cube"


@pytest.fixture
def small(tiny_dataset_maker):
    return tiny_dataset_maker(episodes=4, frames=4, image_size=(32, 32), cameras=["top"])


def episode_path(ref, number):
    return ref.root / ref.manifest.episodes[number].file


def test_a_dataset_comes_back_as_it_was(small, uri, tmp_path, capsys):
    assert main(["dataset", "push", str(small.root), uri]) == 0
    text = capsys.readouterr().out.strip()
    assert text == f"{uri}@sha256:{small.digest}"
    assert main(["dataset", "verify", text]) == 0
    assert main(["dataset", "pull", text, str(tmp_path / "pulled")]) == 0
    pulled = resolve_dataset(tmp_path / "pulled")
    assert pulled.digest == small.digest
    for entry in small.manifest.episodes:
        assert pulled.path(entry).read_bytes() == small.path(entry).read_bytes()
    assert main(["dataset", "pull", text, str(tmp_path / "pulled")]) == 0


def test_a_pull_goes_on_in_its_own_folder_and_into_no_other(small, uri, tmp_path, tiny_dataset_maker):
    ref, out = resolve_dataset(push_dataset(small, uri)), tmp_path / "out"
    out.mkdir()
    (out / "episode_000002.hdf5").write_bytes(b"cut sho")
    pulled = pull_dataset(ref, out)
    assert [pulled.path(entry).read_bytes() for entry in pulled.manifest.episodes] == [
        small.path(entry).read_bytes() for entry in small.manifest.episodes
    ]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds other things \(chapter\.tex\)"):
        pull_dataset(ref, tmp_path / "thesis")
    with pytest.raises(ConfigError, match="holds another dataset"):
        pull_dataset(ref, tiny_dataset_maker(frames=4, image_size=(32, 32), cameras=["top"]).root)


def test_only_the_episodes_that_are_read_are_fetched(small, uri):
    ref = resolve_dataset(push_dataset(small, uri))
    assert [entry.file for entry in ref.manifest.episodes if ref.path(entry).exists()] == []
    every = SimpleRobotDataset(ref, None, obs_horizon=1, pred_horizon=2, vision="images")
    every.low_dim(2)
    assert [entry.file for entry in ref.manifest.episodes if ref.path(entry).exists()] == ["episode_000002.hdf5"]
    held_out = SimpleRobotDataset(ref, "validation", obs_horizon=1, pred_horizon=2, vision="images")
    held_out[0]
    validation = set(ref.manifest.split["validation"])
    here = {entry.file for entry in ref.manifest.episodes if ref.path(entry).exists()}
    assert here == validation | {"episode_000002.hdf5"}


def test_the_reference_is_what_the_next_step_resolves(small, uri):
    text = push_dataset(small, uri)
    assert resolve_dataset(text).text == text


def test_a_second_version_shares_the_episodes(small, uri, tmp_path):
    first = push_dataset(small, uri)
    (small.root / "MANIFEST.json").unlink()
    assert main(["dataset", "import", str(small.root)]) == 0
    again = resolve_dataset(small.root)
    second = push_dataset(again, uri)
    assert first != second
    assert len(open_store(uri).list(EPISODES)) == 4
    assert resolve_dataset(first).bring().digest != resolve_dataset(second).bring().digest


def test_a_changed_episode_is_not_pushed(small, uri):
    damaged = episode_path(small, 1)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"episode_000001\.hdf5 has other bytes"):
        push_dataset(small, uri)
    assert open_store(uri).list("manifests") == []


def test_damage_in_the_store_is_found_by_whoever_reads(small, uri, tmp_path, minio_server, capsys):
    text = push_dataset(small, uri)
    key = f"{EPISODES}/{small.manifest.episodes[3].sha256}.hdf5"
    content = bytearray(episode_path(small, 3).read_bytes())
    content[len(content) // 2] ^= 1
    if uri.startswith("s3://"):
        minio_server.put(uri, key, bytes(content))
    else:
        (tmp_path / "store/cube" / key).write_bytes(content)
    assert verify_pushed(resolve_dataset(text)) == [f"episode_000003.hdf5 is damaged in {open_store(uri).uri}"]
    assert main(["dataset", "verify", text]) == DataError.exit_code
    assert "episode_000003.hdf5 is damaged" in capsys.readouterr().err
    with pytest.raises(DataError, match="other bytes"):
        resolve_dataset(text).bring()
    push_dataset(small, uri)
    assert verify_pushed(resolve_dataset(text)) == []
    resolve_dataset(text).bring()


def test_damage_on_this_machine_is_fetched_anew(small, uri):
    text = push_dataset(small, uri)
    ref = resolve_dataset(text).bring()
    path = episode_path(ref, 0)
    path.unlink()
    path.write_bytes(b"x" * ref.manifest.episodes[0].bytes)
    resolve_dataset(text).bring()
    assert path.read_bytes() == episode_path(small, 0).read_bytes()


def test_a_store_without_this_version_says_so(small, uri):
    with pytest.raises(DataError, match="holds no dataset of the digest 000000000000"):
        resolve_dataset(f"{uri}@sha256:{'0' * 64}")
    with pytest.raises(DataError, match="named without its digest"):
        resolve_dataset(uri)
    assert main(["dataset", "pull", "datasets/cube", "out"]) == 2


def test_a_push_that_was_killed_goes_on_with_the_rest(small, bucket, minio_server):
    uri = f"s3://{bucket}/datasets/cube"
    # Killed when the second episode has been sent: nothing is caught, nothing is cleaned up.
    program = """
import os, sys
import roboimi.storage.transfer as transfer
from roboimi.vla.data.dataset_store import push_dataset
from roboimi.vla.data.manifest import resolve_dataset
transfer.FILES_AT_ONCE, original, sent = 1, transfer.Transfers._upload, []
def upload(*arguments):
    if len(sent) == 2:
        os.kill(os.getpid(), 9)
    sent.append(arguments)
    return original(*arguments)
transfer.Transfers._upload = upload
push_dataset(resolve_dataset(sys.argv[1]), sys.argv[2])
"""
    assert subprocess.run([sys.executable, "-c", program, str(small.root), uri], check=False).returncode == -9
    client = minio_server.client()
    before = {item.object_name: item.last_modified for item in client.list_objects(bucket, "datasets/", recursive=True)}
    store = open_store(uri)
    assert len(store.list(EPISODES)) == 2
    assert store.list("manifests") == []
    push_dataset(small, uri)
    after = {item.object_name: item.last_modified for item in client.list_objects(bucket, "datasets/", recursive=True)}
    assert before.items() <= after.items()
    assert len(store.list(EPISODES)) == 4


def test_what_was_fetched_can_be_used_without_the_store(small, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/store"
    ref = resolve_dataset(push_dataset(small, uri)).bring()
    shutil.rmtree(tmp_path / "store")
    assert SimpleRobotDataset(ref, "train", obs_horizon=1, pred_horizon=2, vision="images")[0]["images"].shape[0] == 1

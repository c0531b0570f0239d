"""Weights staged in a store: loaded from there without any network, refused where a byte or the manifest is wrong."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig

from roboimi.campaign_step import campaign_step
from roboimi.cli import main
from roboimi.errors import EncoderError, StoreAccessError, StoreDamagedError
from roboimi.storage.keys import sha256_file
from roboimi.storage.store import open_store
from roboimi.vla.encode_features import encode_features
from roboimi.vla.models.encoder import load_vision_model, random_vision_model
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.models.staged_weights import (
    MANIFEST,
    STORE_VARIABLE,
    download,
    find_staged,
    list_staged,
    read_manifest,
    stage_weights,
    staged_prefix,
)
from tests.tiny_tower import TINY

REVISION = "0123456789abcdef0123456789abcdef01234567"
SPEC = EncoderSpec.parse(f"google/tiny@{REVISION}")
PREFIX = f"encoders/google/tiny/{REVISION}"


@pytest.fixture
def tower(tmp_path):
    """The files of a commit as the hub gives them, among them some that are never staged."""
    folder = tmp_path / "tower"
    random_vision_model(SiglipVisionConfig(**TINY), seed=0).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code was run')")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def hub_cache(tower, tmp_path, monkeypatch):
    """The cache of the hub's client on a machine that fetched the commit and is now without a network."""
    home = tmp_path / "hub"
    repository = home / "models--google--tiny"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in tower.iterdir():
        # Large files lie under their SHA-256.
        blob = repository / "blobs" / sha256_file(path)
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach anybody fails the test."""

    def refuse(self, address):
        pytest.fail(f"the network was asked for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: pytest.fail(f"the network was asked for {host}"))


@pytest.fixture
def store(tmp_path, tower, monkeypatch):
    """A folder store with the staged tower, which the environment names."""
    store = open_store(tmp_path / "store")
    stage_weights(store, SPEC, tower)
    monkeypatch.setenv(STORE_VARIABLE, store.uri)
    return store


def expected():
    return random_vision_model(SiglipVisionConfig(**TINY), seed=0).state_dict()


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_only_weights_and_settings_are_staged(store, tower):
    names = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert set(store.list(staged_prefix(SPEC))) == names | {MANIFEST}
    manifest = read_manifest(store, SPEC)
    assert {name: (file.bytes, file.sha256) for name, file in manifest.files.items()} == {
        name: ((tower / name).stat().st_size, sha256_file(tower / name)) for name in names
    }


def test_a_staged_tower_is_loaded_without_any_network(store, no_network):
    model = load_vision_model(SPEC)
    torch.testing.assert_close(model.state_dict(), expected(), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_store_comes_before_the_hubs_cache(store, hub_cache):
    flip_last_byte(hub_cache / "model.safetensors")
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)


def test_what_is_not_staged_comes_from_the_hubs_cache(hub_cache, tmp_path, monkeypatch):
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "empty"))
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)


def test_what_is_nowhere_names_every_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ways = rf"roboimi encoder stage google/tiny@{REVISION} STORE.*local folder.*encoder=standin\.$"
    with pytest.raises(EncoderError, match=ways):
        load_vision_model(SPEC)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_flipped_byte_is_refused(store, name):
    flip_last_byte(store.folder(PREFIX) / name)
    with pytest.raises(EncoderError, match=rf"{name} has other bytes than were staged: remove {PREFIX}"):
        load_vision_model(SPEC)


def test_a_missing_file_is_refused(store):
    (store.folder(PREFIX) / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"model\.safetensors is missing"):
        load_vision_model(SPEC)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["files"]["config.json"].update(bytes=1), "was changed after it was written"),
        (lambda document: document["files"]["config.json"].update(sha256="0" * 64), "was changed after it was written"),
        (lambda document: document["files"].pop("model.safetensors"), "was changed after it was written"),
        (lambda document: document.update(revision="f" * 40), "was changed after it was written"),
        (lambda document: document.pop("digest"), "was changed after it was written"),
        (lambda document: document.update(files=None), "was changed after it was written"),
        (lambda document: document.update(schema=9), "has the schema 9"),
    ],
)
def test_a_changed_manifest_is_refused(store, change, words):
    path = store.folder(PREFIX) / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(EncoderError, match=words):
        load_vision_model(SPEC)


def test_the_manifest_of_another_commit_is_refused(store):
    other = EncoderSpec.parse(f"google/tiny@{'f' * 40}")
    store.write_json(f"{staged_prefix(other)}/{MANIFEST}", read_manifest(store, SPEC).to_dict())
    with pytest.raises(EncoderError, match=f"is of google/tiny@{REVISION}, not of google/tiny@{'f' * 40}"):
        load_vision_model(other)


@pytest.mark.parametrize("name", ["../../escaped.safetensors", "model.bin", "modeling.py", ".hidden.safetensors"])
def test_a_manifest_that_names_what_is_never_staged_is_refused(store, name):
    manifest = read_manifest(store, SPEC)
    evil = type(manifest)(SPEC.name, SPEC.revision, {name: manifest.files["config.json"]})
    store.write_json(f"{PREFIX}/{MANIFEST}", evil.to_dict())
    with pytest.raises(EncoderError, match="was changed after it was written"):
        load_vision_model(SPEC)


def test_staging_again_recognises_what_is_there(store, tower):
    before = read_manifest(store, SPEC)
    assert stage_weights(store, SPEC, tower) == before
    assert list_staged(store) == [before]


def test_a_staging_that_was_cut_short_is_finished_and_was_never_seen(store, tower):
    (store.folder(PREFIX) / MANIFEST).unlink()
    (store.folder(PREFIX) / "model.safetensors").write_bytes(b"half")
    assert find_staged(SPEC) is None
    stage_weights(store, SPEC, tower)
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)


def test_other_bytes_under_the_same_commit_are_refused(store, tower):
    flip_last_byte(tower / "model.safetensors")
    with pytest.raises(EncoderError, match=r"holds another model\.safetensors than .*remove the wrong one"):
        stage_weights(store, SPEC, tower)
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)


def test_a_damaged_cache_of_the_hub_is_not_staged(hub_cache, tmp_path):
    flip_last_byte(hub_cache / "model.safetensors")
    with pytest.raises(EncoderError, match="is damaged"):
        stage_weights(open_store(tmp_path / "store"), SPEC, download(SPEC))
    assert list_staged(open_store(tmp_path / "store")) == []


@pytest.mark.parametrize(
    ("remove", "words"), [("model.safetensors", r"lacks model\.safetensors"), ("config.json", r"has no config\.json")]
)
def test_a_folder_without_a_tower_is_refused(tower, tmp_path, remove, words):
    (tower / remove).unlink()
    with pytest.raises(EncoderError, match=words):
        stage_weights(open_store(tmp_path / "store"), SPEC, tower)


def test_every_shard_of_the_weights_is_needed(tower, tmp_path, monkeypatch):
    random_vision_model(SiglipVisionConfig(**TINY), seed=0).save_pretrained(tower, max_shard_size="4KB")
    (tower / "model.safetensors").unlink()
    shards = sorted(path.name for path in tower.glob("model-*.safetensors"))
    assert len(shards) > 1
    store = open_store(tmp_path / "store")
    stage_weights(store, SPEC, tower)
    monkeypatch.setenv(STORE_VARIABLE, store.uri)
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)
    (tower / shards[-1]).unlink()
    with pytest.raises(EncoderError, match=f"lacks {shards[-1]}"):
        stage_weights(open_store(tmp_path / "other"), SPEC, tower)


def test_an_object_store_holds_them_too(tower, bucket, minio_server, monkeypatch, tmp_path):
    uri = f"s3://{bucket}/store"
    monkeypatch.setenv(STORE_VARIABLE, uri)
    stage_weights(open_store(uri), SPEC, tower)
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "another machine"))
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)
    # The same machine again: from its copy.
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)
    content = bytearray((tower / "model.safetensors").read_bytes())
    content[-1] ^= 1
    minio_server.put(uri, f"{PREFIX}/model.safetensors", bytes(content))
    with pytest.raises((EncoderError, StoreDamagedError), match=r"model\.safetensors"):
        load_vision_model(SPEC)
    # A copy that somebody changed on this machine is not used either.
    minio_server.put(uri, f"{PREFIX}/model.safetensors", (tower / "model.safetensors").read_bytes())
    load_vision_model(SPEC)
    (copy,) = (tmp_path / "another machine").rglob("model.safetensors")
    flip_last_byte(copy)
    torch.testing.assert_close(load_vision_model(SPEC).state_dict(), expected(), rtol=0, atol=0)


def test_images_are_encoded_from_staged_weights_without_a_network(
    tiny_dataset_maker, tmp_path, tower, monkeypatch, no_network
):
    ref = tiny_dataset_maker(frames=6, image_size=(32, 32), cameras=["top"])
    store = open_store(tmp_path / "store")
    stage_weights(store, SPEC, tower)
    with campaign_step(store.uri, "job", "encode"):
        encoded = encode_features(store, ref, f"google/tiny@{REVISION}", device="cpu")
    assert encoded.document["feature_dim"] == TINY["hidden_size"]
    assert STORE_VARIABLE not in os.environ


def test_a_step_looks_in_its_campaigns_store_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    with campaign_step(str(tmp_path / "store"), "job", "encode"):
        assert os.environ[STORE_VARIABLE] == str(tmp_path / "store")
    monkeypatch.setenv(STORE_VARIABLE, "elsewhere")
    with campaign_step(str(tmp_path / "store"), "job", "encode"):
        assert os.environ[STORE_VARIABLE] == "elsewhere"


def test_the_command_stages_from_the_hubs_cache_and_shows(hub_cache, tmp_path, capsys):
    uri = str(tmp_path / "store")
    assert main(["encoder", "stage", f"google/tiny@{REVISION}", uri]) == 0
    digest = list_staged(open_store(uri))[0].digest
    assert capsys.readouterr().out == f"google/tiny@{REVISION} is staged in {uri}: 0.1 MiB, sha256:{digest}\n"
    assert main(["encoder", "show", uri]) == 0
    assert capsys.readouterr().out == f"google/tiny@{REVISION}  0.1 MiB  sha256:{digest[:12]}\n"
    assert main(["encoder", "show", uri, f"google/tiny@{REVISION}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{sha256_file(Path(uri) / PREFIX / 'model.safetensors')}  model.safetensors" in lines


def test_the_command_stages_from_a_folder(tower, tmp_path):
    assert main(["encoder", "stage", f"google/tiny@{REVISION}", str(tmp_path / "store"), "--from", str(tower)]) == 0
    assert read_manifest(open_store(tmp_path / "store"), SPEC) is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage", "google/tiny", "STORE"], "is not pinned"),
        (["stage", "standin", "STORE"], "is here already"),
        (["stage", f"google/tiny@{REVISION}", "STORE", "--from", "nowhere"], "nowhere is no folder"),
        (
            ["stage", f"google/tiny@{REVISION}", "STORE"],
            "download that commit elsewhere and give its folder with --from",
        ),
        (["show", "STORE", f"google/tiny@{REVISION}"], "is not staged in"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    arguments = [str(tmp_path / "store") if item == "STORE" else item for item in arguments]
    assert main(["encoder", *arguments]) == EncoderError.exit_code
    error = capsys.readouterr().err
    assert words in error
    assert len([line for line in error.splitlines() if not line.startswith("fetching ")]) == 1


def test_show_says_when_nothing_is_staged(tmp_path, capsys):
    assert main(["encoder", "show", str(tmp_path / "store")]) == 0
    assert "No encoder is staged" in capsys.readouterr().out


def test_a_store_that_cannot_be_opened_is_said_and_the_hub_is_not_asked(monkeypatch, no_network):
    for name in [name for name in os.environ if name.startswith(("AWS_", "MINIO_", "ROBOIMI_S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(STORE_VARIABLE, "s3://lab/store")
    with pytest.raises(StoreAccessError, match="no key for the object store"):
        load_vision_model(SPEC)

"""`roboimi checkpoints`: what is shown is what is there, nothing that is needed goes, one sentence for each mistake."""

import json

import pytest

from roboimi.cli import main
from roboimi.storage.store import open_store
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.manifest import MANIFEST
from tests.training.test_checkpoint import SmallTraining, flip_bit

KEY = "0123456789abcdef0123456789abcdef"
TRAINING = f"trainings/{KEY}"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return open_store(tmp_path / "store")


@pytest.fixture
def saved(store):
    """Four checkpoints, the newest first, and a folder of a writer that died."""
    training = SmallTraining()
    writer = Checkpoints(store, TRAINING, keep=9, epoch=2)
    names = [writer.save(training.advance().snapshot()) for _ in range(4)]
    store.folder(f"{TRAINING}/checkpoints/00000009-e1-0123abcd")
    return names[::-1]


def run(capsys, *arguments):
    code = main(["checkpoints", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def line_of(name, output):
    (line,) = (line for line in output.splitlines() if name in line)
    return line


def test_list_shows_steps_sizes_and_states(store, saved, capsys):
    code, output, _ = run(capsys, "list", store.root)
    assert code == 0
    assert "committed, LATEST" in line_of(saved[0], output)
    assert "│ 3 " in line_of(saved[1], output)
    assert "unfinished" in line_of("00000009-e1-0123abcd", output)


def test_several_trainings_have_a_line_each(store, saved, capsys):
    Checkpoints(store, f"trainings/{'f' * 32}").save(SmallTraining().advance(7).snapshot())
    code, output, _ = run(capsys, "list", store.root)
    assert code == 0
    assert "│ 4 " in line_of(KEY[:12], output)
    code, output, _ = run(capsys, "list", store.root, "ff")
    assert "00000007-e0-" in output


def test_verify_tells_damage_by_its_exit_code(store, saved, capsys):
    code, output, _ = run(capsys, "verify", store.root)
    assert code == 0
    assert all("verified" in line_of(name, output) for name in saved)
    flip_bit(store.root / TRAINING / "checkpoints" / saved[1])
    code, output, error = run(capsys, "verify", store.root)
    assert code == 8
    assert "damaged: ema.safetensors has other content" in line_of(saved[1], output)
    assert "1 checkpoint is damaged" in error
    assert error.count("\n") == 1


def test_fetch_copies_the_newest_that_is_whole(store, saved, capsys, tmp_path):
    flip_bit(store.root / TRAINING / "checkpoints" / saved[0])
    code, output, _ = run(capsys, "fetch", store.root, KEY[:4], "--to", tmp_path / "out")
    assert (code, output.strip()) == (0, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["checkpoint"] == saved[1]
    assert run(capsys, "fetch", store.root, "--to", tmp_path / "out")[0] == 2  # never over what is there
    code, _, error = run(capsys, "fetch", store.root, "--checkpoint", saved[0], "--to", tmp_path / "other")
    assert (code, "is damaged" in error) == (8, True)
    assert not (tmp_path / "other").exists()


def test_gc_keeps_the_newest_verified_and_says_first_what_it_would_do(store, saved, capsys):
    flip_bit(store.root / TRAINING / "checkpoints" / saved[1])
    code, output, _ = run(capsys, "gc", store.root, "--keep", "2", "--dry-run")
    assert (code, len(store.list(f"{TRAINING}/checkpoints"))) == (0, 5)
    would = {line.split("/")[-1] for line in output.splitlines() if line.startswith("would remove")}
    assert would == {saved[1], saved[3]}
    assert store.read_json(f"{TRAINING}/UNCOMMITTED.json") is None
    code, output, _ = run(capsys, "gc", store.root, "--keep", "2")
    assert code == 0
    # The folder without a commit may be somebody's work: it is only noted, until it is old.
    assert set(store.list(f"{TRAINING}/checkpoints")) == {saved[0], saved[2], "00000009-e1-0123abcd"}
    assert list(store.read_json(f"{TRAINING}/UNCOMMITTED.json")) == ["00000009-e1-0123abcd"]


def test_gc_never_removes_what_latest_names(store, saved, capsys):
    """Damaged as it is: a person decides."""
    flip_bit(store.root / TRAINING / "checkpoints" / saved[0])
    assert run(capsys, "gc", store.root, "--keep", "1")[0] == 0
    assert set(store.list(f"{TRAINING}/checkpoints")) >= {saved[0], saved[1]}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("list", "nowhere"), 2, "There is no store at nowhere"),
        (("list", "STORE", "zz"), 2, "no training whose key begins with 'zz'"),
        (("gc", "STORE", "--keep", "0"), 2, "--keep 0"),
        (("fetch", "STORE", "--checkpoint", "../../x"), 2, "is no checkpoint's name"),
        (("fetch", "STORE", "--checkpoint", "00000001-00000000"), 8, "never committed"),
        (("verify", "EMPTY"), 8, "has no trainings"),
        (("list", "EMPTY"), 8, "has no trainings"),
        (("list", "ftp://host/x"), 6, "unsupported scheme"),
    ],
)
def test_mistakes_are_one_sentence(store, saved, capsys, tmp_path, arguments, code, says):
    (tmp_path / "empty").mkdir()
    places = {"STORE": store.root, "EMPTY": tmp_path / "empty"}
    found, _, error = run(capsys, *(places.get(argument, argument) for argument in arguments))
    assert (found, error.count("\n")) == (code, 1)
    assert says in error


def test_an_object_store_is_read_itself_and_not_this_machines_copies(s3_store, capsys, minio_server, bucket):
    """A bit that flips in the bucket is found, though the copy here is whole."""
    writer = Checkpoints(s3_store, TRAINING)
    name = writer.save(SmallTraining().advance().snapshot())
    assert run(capsys, "verify", s3_store.uri)[0] == 0
    key = f"store/{TRAINING}/checkpoints/{name}/ema.safetensors"
    client = minio_server.client()
    content = bytearray(client.get_object(bucket, key).read())
    content[-1] ^= 1
    import io

    client.put_object(bucket, key, io.BytesIO(bytes(content)), len(content))
    code, output, _ = run(capsys, "verify", s3_store.uri)
    assert (code, "damaged" in output) == (8, True)

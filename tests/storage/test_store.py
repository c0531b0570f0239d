"""The folder store: a commit is all or nothing, names cannot leave the store, and refusals are one sentence."""

import json
import os
import subprocess
import sys

import pytest

from roboimi.errors import StoreError
from roboimi.storage.store import checked_prefix, open_store


def test_a_prefix_is_committed_only_by_publish(tmp_path):
    store = open_store(tmp_path / "store")
    (store.folder("features/a") / "x.npy").write_bytes(b"x")
    assert store.committed("features/a", "CACHE.json") is None
    store.publish("features/a", "CACHE.json", {"n": 1})
    assert store.committed("features/a", "CACHE.json") == {"n": 1}
    assert (store.fetch("features/a") / "x.npy").read_bytes() == b"x"
    assert store.list("features/a") == ["CACHE.json", "x.npy"]


def test_the_first_commit_wins(tmp_path):
    store = open_store(tmp_path)
    assert store.publish("t/a", "RESULT.json", {"writer": 1}) == {"writer": 1}
    assert store.publish("t/a", "RESULT.json", {"writer": 2}) == {"writer": 1}
    assert store.committed("t/a", "RESULT.json") == {"writer": 1}


def test_sixteen_writers_at_once_agree_on_one_commit(tmp_path):
    program = (
        "import sys; from roboimi.storage.store import open_store;"
        "print(open_store(sys.argv[1]).publish('t/a', 'RESULT.json', {'writer': int(sys.argv[2])})['writer'])"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(i)], stdout=subprocess.PIPE)
        for i in range(16)
    ]
    answers = {writer.communicate()[0].strip() for writer in writers}
    assert len(answers) == 1
    assert [name for name in os.listdir(tmp_path / "t/a") if name.startswith(".")] == []


def test_a_document_is_replaced_whole(tmp_path):
    store = open_store(f"file://{tmp_path}")
    store.write_json("campaigns/j/a/train.json", {"status": "running"})
    store.write_json("campaigns/j/a/train.json", {"status": "succeeded"})
    assert store.read_json("campaigns/j/a/train.json") == {"status": "succeeded"}
    assert store.list("campaigns/j/a") == ["train.json"]
    assert store.read_json("campaigns/j/a/evaluate.json") is None
    assert store.list("campaigns/none") == []


@pytest.mark.parametrize("prefix", ["../x", "a/../b", "/etc", "a//b", "", "a/\n", "a/\u202eb", "a b", "x" * 101])
def test_names_that_could_leave_the_store_are_refused(prefix, tmp_path):
    with pytest.raises(StoreError, match="Store key"):
        checked_prefix(prefix)
    with pytest.raises(StoreError):
        open_store(tmp_path).write_json(prefix, {})


def test_a_damaged_document_is_named(tmp_path):
    (tmp_path / "LATEST.json").write_text('{"step": 1')
    with pytest.raises(StoreError, match=r"LATEST\.json is not JSON"):
        open_store(tmp_path).read_json("LATEST.json")


def test_nothing_that_is_not_json_is_committed(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.publish("t/a", "RESULT.json", {"loss": float("nan")})
    assert store.list("t/a") == []


def test_a_store_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        open_store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="unsupported scheme 'ftp'"):
        open_store("ftp://host/store")
    with pytest.raises(StoreError, match="has nothing under trainings/x"):
        open_store(tmp_path).fetch("trainings/x")


def test_documents_are_readable_by_other_users_of_the_store(tmp_path):
    open_store(tmp_path).write_json("a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {}


def test_a_document_is_replaced_only_by_who_knows_its_version(tmp_path):
    store = open_store(tmp_path)
    first = store.create("t/a/LATEST.json", {"epoch": 1})
    assert store.create("t/a/LATEST.json", {"epoch": 9}) is None
    assert store.read_versioned("t/a/LATEST.json") == first
    second = store.replace("t/a/LATEST.json", {"epoch": 2}, first.version)
    assert store.replace("t/a/LATEST.json", {"epoch": 3}, first.version) is None
    assert store.read_versioned("t/a/LATEST.json") == second
    assert store.replace("t/b/LATEST.json", {}, first.version) is None
    assert store.list("t/a") == ["LATEST.json"]


def test_no_increment_is_lost_between_processes(tmp_path):
    program = """
import sys
from roboimi.storage.store import open_store
store = open_store(sys.argv[1])
for _ in range(25):
    while True:
        now = store.read_versioned("t/COUNT.json")
        if store.replace("t/COUNT.json", {"count": now.document["count"] + 1}, now.version):
            break
"""
    open_store(tmp_path).create("t/COUNT.json", {"count": 0})
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert open_store(tmp_path).read_json("t/COUNT.json") == {"count": 100}


def test_a_file_is_put_whole_and_a_prefix_removed(tmp_path):
    store = open_store(tmp_path / "store")
    (tmp_path / "report.html").write_text("<p>1</p>")
    store.put("campaigns/j/report.html", tmp_path / "report.html")
    assert (store.fetch("campaigns/j") / "report.html").read_text() == "<p>1</p>"
    store.write_json("campaigns/j/DONE.json", {})
    store.remove("campaigns/j", "DONE.json")
    store.remove("campaigns/j", "DONE.json")
    assert store.list("campaigns") == []


def test_a_removal_begins_with_the_commit(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.folder("c/a").joinpath("model.safetensors").write_bytes(b"x")
    store.publish("c/a", "MANIFEST.json", {})
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.remove("c/a", "MANIFEST.json")
    assert store.list("c/a") == ["model.safetensors"]

"""Every store: a commit is all or nothing, names cannot leave the store, and refusals are one sentence.

Each test runs on a folder and on a bucket of a real MinIO server.
"""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboimi.errors import StoreDamagedError, StoreError
from roboimi.storage.store import checked_prefix, open_store


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    """Where a new, empty store is."""
    return str(tmp_path / "store") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/store"


@pytest.fixture
def store(uri):
    return open_store(uri)


def test_a_prefix_is_committed_only_by_publish(store):
    (store.folder("features/a") / "x.npy").write_bytes(b"x")
    assert store.committed("features/a", "CACHE.json") is None
    store.publish("features/a", "CACHE.json", {"n": 1})
    assert store.committed("features/a", "CACHE.json") == {"n": 1}
    assert (store.fetch("features/a") / "x.npy").read_bytes() == b"x"
    assert (store.fetch("features/a", ["x.npy", "none.npy"]) / "x.npy").read_bytes() == b"x"
    assert store.list("features/a") == ["CACHE.json", "x.npy"]


def test_the_first_commit_wins(store):
    assert store.publish("t/a", "RESULT.json", {"writer": 1}) == {"writer": 1}
    assert store.publish("t/a", "RESULT.json", {"writer": 2}) == {"writer": 1}
    assert store.committed("t/a", "RESULT.json") == {"writer": 1}


def test_sixteen_writers_at_once_agree_on_one_commit(store, uri):
    program = """
import os, sys, threading
from roboimi.storage.store import open_store
store, go, answers = open_store(sys.argv[1]), threading.Barrier(4), []
def write(number):
    go.wait()
    answers.append(store.publish("t/a", "RESULT.json", {"writer": number})["writer"])
threads = [threading.Thread(target=write, args=(int(sys.argv[2]) + i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*answers)
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", program, uri, str(first)], stdout=subprocess.PIPE)
        for first in range(0, 16, 4)
    ]
    answers = b" ".join(writer.communicate()[0] for writer in writers).split()
    assert len(answers) == 16
    assert set(answers) == {str(store.committed("t/a", "RESULT.json")["writer"]).encode()}
    assert [name for name in os.listdir(store.fetch("t/a")) if name.startswith(".writing-")] == []


def test_a_document_is_replaced_whole(store):
    store.write_json("campaigns/j/a/train.json", {"status": "running"})
    store.write_json("campaigns/j/a/train.json", {"status": "succeeded"})
    assert store.read_json("campaigns/j/a/train.json") == {"status": "succeeded"}
    assert store.list("campaigns/j/a") == ["train.json"]
    assert store.list("campaigns/j") == ["a"]
    assert store.read_json("campaigns/j/a/evaluate.json") is None
    assert store.list("campaigns/none") == []


@pytest.mark.parametrize("prefix", ["../x", "a/../b", "/etc", "a//b", "", "a/\n", "a/\u202eb", "a b", "x" * 101])
def test_names_that_could_leave_the_store_are_refused(prefix, store):
    with pytest.raises(StoreError, match="Store key"):
        checked_prefix(prefix)
    for use in (store.read_json, store.list, store.folder, store.fetch, lambda key: store.write_json(key, {})):
        with pytest.raises(StoreError):
            use(prefix)


@given(st.text(max_size=120))
def test_whatever_the_text_a_key_has_harmless_segments_or_is_refused(text):
    try:
        checked_prefix(text)
    except StoreError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert not set(refusal) & {"\n", "\x1b", "\u202e"}
    if refusal:
        return
    for segment in text.split("/"):
        assert segment.isascii()
        assert segment not in {"", ".", ".."}
        assert all(character.isalnum() or character in "._=-" for character in segment)


def test_a_damaged_document_is_named(store, uri, tmp_path, minio_server):
    if uri.startswith("s3://"):
        minio_server.put(uri, "LATEST.json", b'{"step": 1')
    else:
        (tmp_path / "store/LATEST.json").write_text('{"step": 1')
    with pytest.raises(StoreDamagedError, match=r"LATEST\.json is not JSON"):
        store.read_json("LATEST.json")


def test_nothing_that_is_not_json_is_committed(store):
    (store.folder("t/a") / "x.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match="JSON compliant"):
        store.publish("t/a", "RESULT.json", {"loss": float("nan")})
    assert "RESULT.json" not in store.list("t/a")


def test_what_is_not_there_says_so(store):
    with pytest.raises(StoreError, match="has nothing under trainings/x"):
        store.fetch("trainings/x")
    with pytest.raises(StoreError, match="has nothing under trainings/x"):
        store.fetch("trainings/x", ["metrics.jsonl"])


def test_a_document_is_replaced_only_by_who_knows_its_version(store):
    first = store.create("t/a/LATEST.json", {"epoch": 1})
    assert store.create("t/a/LATEST.json", {"epoch": 9}) is None
    assert store.create("t/a/LATEST.json", {"epoch": 1}) is None
    assert store.read_versioned("t/a/LATEST.json") == first
    second = store.replace("t/a/LATEST.json", {"epoch": 2}, first.version)
    assert store.replace("t/a/LATEST.json", {"epoch": 3}, first.version) is None
    assert store.read_versioned("t/a/LATEST.json") == second
    assert store.replace("t/b/LATEST.json", {}, first.version) is None
    assert store.list("t/a") == ["LATEST.json"]


def test_no_increment_is_lost_between_processes(store, uri):
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
    store.create("t/COUNT.json", {"count": 0})
    writers = [subprocess.Popen([sys.executable, "-c", program, uri]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert store.read_json("t/COUNT.json") == {"count": 100}


def test_a_file_is_put_whole_and_a_prefix_removed(store, tmp_path):
    for text in ("<p>1</p>", "<p>22</p>"):
        (tmp_path / "report.html").write_text(text)
        store.put("campaigns/j/report.html", tmp_path / "report.html")
        assert (store.fetch("campaigns/j") / "report.html").read_text() == text
    store.write_json("campaigns/j/DONE.json", {})
    store.remove("campaigns/j", "DONE.json")
    store.remove("campaigns/j", "DONE.json")
    assert store.list("campaigns") == []
    with pytest.raises(StoreError, match="has nothing under"):
        store.fetch("campaigns/j")


def test_a_prefix_does_not_reach_into_another_whose_name_begins_alike(store):
    for prefix in ("t/a", "t/ab"):
        (store.folder(prefix) / "x").write_text(prefix)
        store.publish(prefix, "DONE.json", {})
    store.remove("t/a", "DONE.json")
    assert store.list("t") == ["ab"]
    assert (store.fetch("t/ab") / "x").read_text() == "t/ab"


def test_a_folder_that_cannot_be_made_and_a_scheme_that_is_unknown_say_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        open_store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="unsupported scheme 'ftp'"):
        open_store("ftp://me:secret@host/store")
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)


def test_documents_are_readable_by_other_users_of_the_folder(tmp_path):
    open_store(tmp_path).write_json("a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {}


def test_a_removal_begins_with_the_commit(store, monkeypatch):
    store.folder("c/a").joinpath("model.safetensors").write_bytes(b"x")
    store.publish("c/a", "MANIFEST.json", {})

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", interrupted)
    monkeypatch.setattr("minio.Minio.remove_objects", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.remove("c/a", "MANIFEST.json")
    assert store.list("c/a") == ["model.safetensors"]

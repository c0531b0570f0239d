"""Progress reaches another process through a file, and never more often than it can be read."""

import json
import os
import resource

from roboimi.progress import ENVIRONMENT_VARIABLE, Progress, progress_file


def test_the_file_tells_how_far_the_work_is_and_goes_with_it(tmp_path, monkeypatch):
    path = progress_file(tmp_path, os.getpid())
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    with Progress.start("train", total=4) as progress:
        assert json.loads(path.read_text())["done"] == 0
        progress.update(4, note="loss 0.1")
        state = json.loads(path.read_text())
        assert (state["label"], state["done"], state["total"], state["note"]) == ("train", 4, 4, "loss 0.1")
    assert not path.exists()


def test_updates_in_quick_succession_are_dropped_but_the_last_is_shown(tmp_path, monkeypatch):
    path = progress_file(tmp_path, os.getpid())
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    with Progress.start("train", total=100) as progress:
        for done in range(1, 100):
            progress.update(done)
        assert json.loads(path.read_text())["done"] < 99
        progress.update(100)
        assert json.loads(path.read_text())["done"] == 100


def test_without_a_terminal_nothing_is_printed(capsys, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with Progress.start("train", total=2) as progress:
        progress.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_disk_without_room_does_not_end_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Progress.start("train", total=4) as progress:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        try:
            progress.update(4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert json.loads(progress_file(tmp_path, os.getpid()).read_text())["done"] == 0

"""Metrics lines: complete, once each, and equal for equal trainings."""

import contextlib
import json
import math
import resource

import pytest

from roboimi.errors import DiskFullError
from roboimi.vla.training.metrics import MetricsLog, Window, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, steps, resumed_step=0):
    with MetricsLog(path, resumed_step) as metrics:
        for step in steps:
            metrics.write("train", step, {"loss": step / 3})


def test_lines_are_there_before_the_file_is_closed(path):
    metrics = MetricsLog(path, 0)
    metrics.write("train", 5, {"loss": 0.1})
    assert read_metrics(path) == [{"kind": "train", "step": 5, "loss": 0.1}]
    metrics.close()


def test_resuming_drops_later_lines_and_appends(path):
    write(path, [2, 4, 6, 8])
    write(path, [6, 8, 10], resumed_step=5)
    assert [line["step"] for line in read_metrics(path)] == [2, 4, 6, 8, 10]


def test_a_line_cut_by_a_kill_is_dropped(path):
    write(path, [2, 4])
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert [line["step"] for line in read_metrics(path)] == [2, 4]
    write(path, [6], resumed_step=4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]


def test_rollouts_of_a_step_are_remembered_across_a_resumption(path):
    with MetricsLog(path, 0) as metrics:
        metrics.write("rollout", 4, {"success_rate": 0.2})
        metrics.write("train", 6, {"loss": 1.0})
        assert metrics.has_rollouts(4)
        assert not metrics.has_rollouts(6)
    with MetricsLog(path, 5) as metrics:
        assert metrics.has_rollouts(4)
    with MetricsLog(path, 3) as metrics:
        assert not metrics.has_rollouts(4)


def test_values_that_json_has_no_form_for_become_null(path):
    with MetricsLog(path, 0) as metrics:
        line = metrics.write("train", 1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    assert line == read_metrics(path)[0] == {"kind": "train", "step": 1, "loss": None, "grad_norm": None, "lr": 0.5}


def test_window_means_survive_json_to_the_last_bit():
    values = [0.1, 1 / 3, math.pi, 1e-17]
    whole, first = Window(), Window()
    for value in values:
        whole.add({"loss": value})
    for value in values[:2]:
        first.add({"loss": value})
    second = Window(json.loads(json.dumps(first.state_dict())))
    for value in values[2:]:
        second.add({"loss": value})
    assert second.means() == whole.means()
    assert whole.means()["loss"] == pytest.approx(sum(values) / 4)


@contextlib.contextmanager
def no_room(size=20):
    """No file may grow beyond `size` bytes: as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_that_find_no_room_are_written_later(path):
    with MetricsLog(path, 0) as metrics:
        with no_room():
            for step in (1, 2):
                metrics.write("train", step, {"loss": 0.123456789})
            assert path.stat().st_size <= 20
            assert [json.loads(line)["step"] for line in metrics.text().splitlines()] == [1, 2]
        metrics.write("train", 3, {"loss": 0.5})
        assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_lines_that_find_no_room_in_the_end_are_one_sentence(path):
    metrics = MetricsLog(path, 0)
    with no_room():
        metrics.write("train", 1, {"loss": 0.123456789})
        with pytest.raises(DiskFullError, match=r"metrics\.jsonl"):
            metrics.close()


def test_a_failure_is_not_hidden_by_lines_that_find_no_room(path):
    metrics = MetricsLog(path, 0)
    with no_room():
        metrics.write("train", 1, {"loss": 0.123456789})
        metrics.__exit__(KeyError, KeyError(), None)  # and nothing is raised in its place


def test_the_checkpoints_own_lines_win_and_rollouts_after_it_are_kept(path):
    """On another machine there is no file at all; here it may hold lines of a writer that was replaced."""
    write(path, [2, 4, 6])
    with MetricsLog(path, 6) as metrics:
        metrics.write("rollout", 6, {"success_rate": 0.5})
    committed = "".join(json.dumps({"kind": "train", "step": step, "loss": 1.0}) + "\n" for step in (2, 4, 6))
    with MetricsLog(path, 6, committed) as metrics:
        assert metrics.has_rollouts(6)
    assert [(line["kind"], line.get("loss")) for line in read_metrics(path)] == [("train", 1.0)] * 3 + [
        ("rollout", None)
    ]
    path.unlink()
    with MetricsLog(path, 6, committed) as metrics:
        assert not metrics.has_rollouts(6)
    assert path.read_text() == committed


def test_an_empty_window_has_no_means():
    assert Window().means() == {}

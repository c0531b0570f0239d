"""Metrics lines: complete, once each, and equal for equal trainings."""

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


def test_a_full_disk_is_one_sentence(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsLog(path, 0) as metrics:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # no file may grow beyond: as if the disk were full
        try:
            with pytest.raises(DiskFullError, match=r"metrics\.jsonl"):
                metrics.write("train", 1, {"loss": 0.123456789})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_empty_window_has_no_means():
    assert Window().means() == {}

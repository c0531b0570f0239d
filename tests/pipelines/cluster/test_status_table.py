"""Protects the table: it fits the terminal, shows names as they are, and leaves out what nobody knows."""

import pytest
from rich.console import Console

from pipelines.cluster.campaign_runs import CampaignRun
from pipelines.cluster.status import CampaignStatus, StepStatus
from pipelines.cluster.status_table import reason_line, run_table

RUN = CampaignRun(
    id="1", name="c-0123456", state="RUNNING", experiment_id="1", created_at=None, finished_at=None, parameters={},
    tasks=(), archived=False,
)  # fmt: skip
PODS = [f"roboimi-campaign-x7k2p-system-container-impl-{number}" for number in (1234, 5678)]


def shown(steps, width, notes=()):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(run_table(CampaignStatus(RUN, steps, [], list(notes)), "https://kfp/#/runs/details/1", width))
    return captured.get()


def test_pods_are_called_by_what_differs_where_there_is_no_room():
    steps = [StepStatus(step="train", arm=f"arm-{pod[-4:]}", state="running", pod=pod) for pod in PODS]
    narrow, wide = shown(steps, 80), shown(steps, 300)
    assert "pods roboimi-campaign-x7k2p-system-container-impl…" in narrow
    assert "…-1234" in narrow
    assert all(pod in wide for pod in PODS)
    assert max(map(len, narrow.splitlines())) <= 80


def test_a_single_pod_keeps_its_name():
    assert PODS[0] in shown([StepStatus(step="train", arm="a", state="running", pod=PODS[0])], 120)


def test_columns_that_nobody_fills_are_left_out():
    text = shown([StepStatus(step="train", arm="a", state="waiting")], 80)
    assert "SwanLab" not in text
    assert "failure" not in text


def test_names_are_no_markup():
    step = StepStatus(step="train", arm="[red]", state="failed", failure_class="x", reason="A [bold] word")
    text = shown([step], 120, ["a [note]"])
    for part in ("[red]", "A [bold] word.", "note: a [note]"):
        assert part in text


@pytest.mark.parametrize(
    ("again", "end"),
    [(True, "Running it again can help."), (False, "Running it again cannot help."), (None, "It broke.")],
)
def test_a_failure_says_whether_running_again_helps(again, end):
    step = StepStatus(step="train", arm="a", state="failed", failure_class="x", reason="It broke.", retryable=again)
    assert reason_line(step).endswith(end)

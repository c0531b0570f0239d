"""Protects the campaign as a whole on one machine: the real DAG, real episodes, real trainings and rollouts, only tiny.

Three arms run, one of which dies in training. Then the same campaign runs again and finds everything finished.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.profiles import load_profile
from roboimi.storage.store import open_store
from roboimi.vla.config import compose_config
from tests.conftest import make_tiny_dataset
from tests.pipelines.conftest import ROOT, pipelines_environment

# The first test waits for a whole campaign.
pytestmark = pytest.mark.timeout(900)

ARMS = """
- arm: projection-96
  overrides: [backbone.per_view_output_dim=96]
- arm: diverges
  overrides: [backbone=blind, train.learning_rate=1e30, train.max_nonfinite=0]
- arm: projection-192
  overrides: [backbone.per_view_output_dim=192]
- arm: long
  overrides: [backbone=blind, train.steps=400, train.log_every=5]
- arm: endless
  overrides: [backbone=blind, train.steps=1000000, train.log_every=5]
"""
TINY = ("head.n_layer=1", "train.batch_size=4", "train.warmup_steps=1", "train.tracking=disabled", "train.threads=1")
TINY += ("+task.env_kwargs.time_limit_s=1",)


@dataclass(frozen=True)
class Place:
    """Where the campaigns of this file happen."""

    root: Path
    dataset: Path

    def command(self, arms: Sequence[str], *more: str) -> list[str]:
        options = ["--dataset", str(self.dataset), "--arms", str(self.root / "arms.yaml"), "--only", *arms]
        options += ["--store", str(self.root / "store"), "--outputs", str(self.root / "outputs")]
        options += ["--steps", "12", "--eval-episodes", "1", *more]
        for override in TINY:
            options += ["--set", override]
        return ["run", *options]

    def job(self, number: int) -> str:
        return sorted(path.name for path in (self.root / "outputs" / "campaigns").iterdir())[number]

    def records(self, job: str) -> dict[tuple[str, str], dict[str, Any]]:
        store, found = open_store(self.root / "store"), {}
        for arm in store.list(f"campaigns/{job}"):
            for name in store.list(f"campaigns/{job}/{arm}"):
                found[arm, name.removesuffix(".json")] = store.read_json(f"campaigns/{job}/{arm}/{name}")
        return found


@dataclass(frozen=True)
class Ran:
    """One campaign that ran."""

    place: Place
    job: str
    process: "subprocess.CompletedProcess[str]"

    @property
    def records(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self.place.records(self.job)

    @property
    def folder(self) -> Path:
        return self.place.root / "store" / "campaigns" / self.job


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    # A space and the text that kfp.local replaces by the interpreter's path, in every path that a step sees.
    root = tmp_path_factory.mktemp("python3 of a user")
    ref = make_tiny_dataset(root / "episodes", episodes=4, frames=24, cameras=compose_config()["task"]["cameras"])
    (root / "arms.yaml").write_text(ARMS)
    return Place(root, ref.root)


@pytest.fixture(scope="module")
def first(place: Place, run_pipelines: Callable[..., "subprocess.CompletedProcess[str]"]) -> Ran:
    process = run_pipelines(*place.command(["projection-96", "diverges", "projection-192"]), timeout=600)
    return Ran(place, place.job(-1), process)


@pytest.fixture(scope="module")
def second(first: Ran, run_pipelines: Callable[..., "subprocess.CompletedProcess[str]"]) -> Ran:
    process = run_pipelines(*first.place.command(["projection-96", "diverges", "projection-192"]), timeout=300)
    return Ran(first.place, first.place.job(-1), process)


def test_one_line_for_each_finished_step(first):
    lines = [line.split() for line in first.process.stdout.splitlines() if line.startswith(("done", "failed"))]
    steps = [" ".join(words[:3]) if words[1] in {"train", "evaluate"} else " ".join(words[:2]) for words in lines]
    assert steps[:3] == ["done validate", "done smoke", "done encode"]
    assert steps[-1] == "done compare"
    # Arms run side by side, so their order among each other is theirs.
    assert sorted(steps[3:-1]) == [
        "done evaluate projection-192",
        "done evaluate projection-96",
        "done train projection-192",
        "done train projection-96",
        "failed train diverges",
    ]
    for arm in ("projection-96", "projection-192"):
        assert steps.index(f"done train {arm}") < steps.index(f"done evaluate {arm}")
    assert "12 steps, loss" in first.process.stdout


def test_a_dead_arm_makes_the_exit_code_and_is_named_with_its_reason(first):
    assert first.process.returncode == 1
    sentence, log = first.process.stderr.splitlines()
    assert sentence.startswith("error: train diverges: ")
    record = first.records["diverges", "train"]
    assert (record["status"], record["failure_class"]) == ("failed", "non-finite")
    assert record["reason"] in sentence
    assert log == f"       its log is {record['log']}"
    assert record["reason"] in Path(record["log"]).read_text()


def test_a_dead_arm_does_not_lose_the_report(first):
    report = json.loads((first.folder / "report.json").read_text())
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert set(arms) == {"projection-96", "diverges", "projection-192"}
    for name in ("projection-96", "projection-192"):
        assert arms[name]["missing"] == ""
        assert arms[name]["success"]["episodes"] == 1
    assert "non-finite" in arms["diverges"]["missing"]
    page = (first.folder / "report.html").read_text()
    assert first.records["diverges", "train"]["reason"].split(":")[0] in page
    assert str(first.folder / "report.html") in first.process.stdout
    # The table on the terminal names it too.
    assert "no result" in first.process.stdout


def test_the_trainer_sees_both_arms_and_their_whole_numbers(first):
    store, widths = open_store(first.place.root / "store"), {}
    for arm in ("projection-96", "projection-192"):
        record = first.records[arm, "train"]
        assert record["arm"] == arm
        assert f"backbone.per_view_output_dim={arm.split('-')[1]}" in record["overrides"]
        training = store.read_json(f"{record['training']}/TRAINING.json")
        widths[arm] = training["config"]["backbone"]["per_view_output_dim"]
    assert widths == {"projection-96": 96, "projection-192": 192}
    assert all(type(width) is int for width in widths.values())


def test_no_more_arms_run_at_a_time_than_the_profile_says(first):
    trainings = [record for (_, step), record in first.records.items() if step == "train"]
    for record in trainings:
        others = [other for other in trainings if other["started_at"] < record["started_at"] < other["ended_at"]]
        assert len(others) < load_profile("local").parallelism


def test_every_step_names_its_campaign_and_its_own_log(first):
    assert all(record["job_id"] == first.job for record in first.records.values())
    logs = [Path(record["log"]) for record in first.records.values()]
    assert all(log.is_file() for log in logs)
    assert len(set(logs)) == len(logs)


def test_nothing_of_the_user_is_removed(first, second):
    request = json.loads((first.place.root / "outputs" / "campaigns" / first.job / "request.json").read_text())
    workspace = Path(request["workspace_root"])
    assert not workspace.exists(), "kfp.local removes it: so it must have been nobody's"
    assert workspace.parent.name.startswith("roboimi-campaign-")
    assert not workspace.parent.exists()
    assert first.place.root not in workspace.parents
    assert len(list(first.place.dataset.glob("*.hdf5"))) == 4
    assert (first.place.root / "arms.yaml").is_file()


def test_a_second_campaign_finds_everything_finished(first, second):
    before, after = first.records, second.records
    assert set(before) == set(after)
    again = {place: record.get("recognised") for place, record in after.items()}
    assert again == {
        ("campaign", "validate"): True,
        ("campaign", "smoke"): True,
        ("campaign", "encode"): True,
        ("campaign", "compare"): None,
        ("projection-96", "train"): True,
        ("projection-96", "evaluate"): True,
        ("projection-192", "train"): True,
        ("projection-192", "evaluate"): True,
        ("diverges", "train"): None,
    }
    for arm in ("projection-96", "projection-192"):
        assert before[arm, "train"]["checkpoint"] == after[arm, "train"]["checkpoint"]
    assert second.process.returncode == 1


def test_the_stand_in_is_named_in_the_first_line(first):
    report = json.loads((first.folder / "report.json").read_text())
    assert "stand-in" in report["first_line"]
    assert report["data"]["digest"] in first.records["campaign", "validate"]["dataset_digest"]


def start(place: Place, arm: str) -> "subprocess.Popen[str]":
    """A campaign that is in the middle of training `arm`."""
    jobs = set((place.root / "outputs" / "campaigns").iterdir())
    command = [sys.executable, "-m", "pipelines", *place.command([arm])]
    environment = pipelines_environment(place.root)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        new = set((place.root / "outputs" / "campaigns").iterdir()) - jobs
        record = place.records(new.pop().name).get((arm, "train"), {}) if new else {}
        metrics = place.root / "store" / record.get("training", "nothing") / "metrics.jsonl"
        if metrics.is_file() and metrics.stat().st_size:
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the training did not start: {process.communicate()}")


def processes_of(job: str) -> list[str]:
    """Command lines of living processes that belong to a campaign."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if job in command and state not in "ZX":
            found.append(command)
    return found


def gone(job: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_of(job):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_after_ctrl_c_the_same_command_goes_on(first, second, run_pipelines):
    process = start(first.place, "long")
    job = first.place.job(-1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert stderr == "stopped: the same command goes on from the last checkpoint.\n"
    assert gone(job, 5)
    record = first.place.records(job)["long", "train"]
    assert (record["status"], record["failure_class"]) == ("failed", "interrupted")
    store = open_store(first.place.root / "store")
    assert store.read_json(f"{record['training']}/LATEST.json")["step"] > 0
    assert run_pipelines(*first.place.command(["long"])).returncode == 0
    attempts = store.read_json(f"{record['training']}/TRAINING.json")["attempts"]
    assert len(attempts) == 2


def test_no_training_outlives_a_killed_campaign(first, second):
    process = start(first.place, "endless")
    job = first.place.job(-1)
    assert processes_of(job)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert gone(job, 30)

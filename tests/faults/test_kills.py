"""kill -9 anywhere: no commit is lost, LATEST stays readable, and the training that goes on is the unkilled one.

Half of the kills fall inside of saving, committing, announcing and collecting, before calls that change a file or send
bytes; the other half before any call of any function of the run.
"""

import collections
import os
import random
import signal
import time

import pytest

from roboimi.storage.store import open_store
from roboimi.vla.training.reader import CheckpointReader
from tests.faults.conftest import STEPS
from tests.faults.harness import die_at, final_state, fork_training, the_training


def count_calls(run, uri, changes_only):
    """How many calls there are to kill before; threads make it vary a little."""

    def before(report):
        counter = die_at(-1, report, changes_only)
        return lambda step: report({"calls": next(counter)})

    child = fork_training(run, uri, before=before)
    assert child.end() == 0, child.said[-1]
    return child.last("calls")


def kill_and_look(run, uri, number, changes_only):
    """One trial: kill, see what is there, go on to the end. Gives what happened; None if the kill came too late."""
    child = fork_training(run, uri, before=lambda report: die_at(number, report, changes_only) and None)
    code = child.end()
    if code != -signal.SIGKILL:
        assert code == 0, child.said[-1]
        return None
    store = open_store(uri)
    here = store.list("trainings")
    committed, step = {}, 0
    if here:
        reader = CheckpointReader(store, the_training(store))
        committed = reader.commits()
        announced = reader.announced()  # readable, or this raises
        newest = reader.newest()
        assert (newest is None) == (not committed)
        if newest:
            step = newest[1].step
            assert step == max(commit.step for commit in committed.values())
            assert all(name in committed for name in announced)
        for name in committed:
            reader.verify(name)
    again = fork_training(run, uri)
    assert again.end() == 0, again.said[-1]
    first = next((line["step"] for line in again.said if "step" in line), STEPS + 1)
    # What was spooled and not committed may put it ahead of what was committed, never behind.
    assert first >= step + 1
    return {
        "stage": child.last("killed_in"),
        "lost_steps": child.last("step", 0) - (first - 1),
        "final": final_state(store, again.last("result")),
    }


def campaign(run, new_uri, trials, expected, seed):
    random_numbers = random.Random(seed)
    totals = {kind: count_calls(run, new_uri(), kind) for kind in (True, False)}
    stages, lost = collections.Counter(), []
    for trial in range(trials):
        changes_only = trial % 2 == 0
        outcome = None
        while outcome is None:
            number = random_numbers.randint(1, totals[changes_only])
            outcome = kill_and_look(run, new_uri(), number, changes_only)
        assert outcome["final"] == expected
        stages[outcome["stage"]] += 1
        lost.append(outcome["lost_steps"])
    return stages, lost


@pytest.fixture
def new_uri(tmp_path):
    made = iter(range(10**6))
    return lambda: str(tmp_path / str(next(made)))


@pytest.mark.parametrize("trials", [4, pytest.param(200, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])])
def test_a_killed_training_loses_no_commit_and_ends_as_the_unkilled_one(make_run, unkilled, new_uri, note, trials):
    stages, lost = campaign(make_run(), new_uri, trials, unkilled(), seed=trials)
    inside = sum(stages.values()) - stages["training"]
    note(n=trials, stages=dict(stages), inside=inside, lost_commits=0, unreadable=0, lost_steps_max=max(lost))
    assert inside >= trials // 4


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("trials", [60])
def test_so_does_one_whose_checkpoints_are_in_minio(
    make_run, unkilled, minio_server, s3_environment, tmp_path, monkeypatch, note, trials
):
    made = iter(range(10**6))

    def new_uri():
        monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / f"cache-{next(made)}"))
        return f"s3://{minio_server.new_bucket()}/store"

    stages, lost = campaign(make_run(), new_uri, trials, unkilled(), seed=trials)
    inside = sum(stages.values()) - stages["training"]
    note(n=trials, stages=dict(stages), inside=inside, lost_commits=0, unreadable=0, lost_steps_max=max(lost))


@pytest.mark.parametrize("at", [(4, 7, 15)], ids=["three kills, two in one epoch"])
def test_three_kills_leave_no_trace_in_the_result(make_run, unkilled, new_uri, at):
    """An epoch is ten steps here."""
    run, uri = make_run("train.steps=20"), new_uri()
    resumed = []
    for number in at:

        def before(report, number=number):
            store = open_store(uri)

            def see(step):
                if step < number:
                    return
                # Something new has to be committed, or the kill is the same as the one before.
                while (store.read_json(f"{the_training(store)}/LATEST.json") or {"step": 0})["step"] < number - 2:
                    time.sleep(0.01)  # the writer is a thread of this process
                os.kill(os.getpid(), signal.SIGKILL)

            return see

        child = fork_training(run, uri, before=before)
        assert child.end() == -signal.SIGKILL
        resumed.append(child.said[0]["step"])
    last = fork_training(run, uri)
    assert last.end() == 0
    resumed.append(last.said[0]["step"])
    assert resumed[0] == 1 < resumed[1] < resumed[2] <= 10 < resumed[3]
    assert final_state(open_store(uri), last.last("result")) == unkilled("train.steps=20")

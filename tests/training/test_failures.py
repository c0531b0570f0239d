"""Every failure leaves its record, and a retry of a hopeless one ends at once."""

import pytest

from roboimi.errors import FencedError, Interrupted, NonFiniteError, RenderError
from roboimi.vla import train_vla
from roboimi.vla.train_vla import train
from roboimi.vla.training.failures import FILE, record_failure, refuse_if_hopeless

DIVERGES = ("train.learning_rate=1e30", "train.max_nonfinite=0")


@pytest.fixture
def failure_of(store):
    def read():
        (key,) = store.list("trainings")
        return store.read_json(f"trainings/{key}/{FILE}")

    return read


@pytest.fixture(autouse=True)
def _revision(monkeypatch):
    monkeypatch.setenv("ROBOIMI_REVISION", "a" * 40)


def test_a_hopeless_failure_is_recorded_and_ends_the_next_attempt_before_any_work(
    make_run, store, failure_of, monkeypatch
):
    with pytest.raises(NonFiniteError):
        train(make_run(*DIVERGES), store=store)
    failure = failure_of()
    assert (failure["failure_class"], failure["exit_code"], failure["retryable"]) == ("non-finite", 20, False)
    assert "max_nonfinite=0" in failure["reason"]
    with monkeypatch.context() as patched:
        patched.setattr(train_vla, "open_record", None)  # it does not come that far
        with pytest.raises(NonFiniteError, match=r"same code \(non-finite: .*train.retry_failed=true") as raised:
            train(make_run(*DIVERGES), store=store)
    assert raised.value.exit_code == 20
    with pytest.raises(NonFiniteError, match=r"^The loss"):
        train(make_run(*DIVERGES, "train.retry_failed=true"), store=store)
    assert failure_of()["attempt"] == 2


@pytest.mark.parametrize("revision", ["b" * 40, "a" * 40 + "-dirty"])
def test_other_code_may_try_again(store, revision, monkeypatch):
    record_failure(store, "trainings/abc", NonFiniteError("Diverged."), attempt=1)
    monkeypatch.setenv("ROBOIMI_REVISION", revision)
    refuse_if_hopeless(store, "trainings/abc")


@pytest.mark.parametrize("error", [Interrupted("Stopped.", 15), RuntimeError("a bug"), MemoryError()])
def test_what_may_pass_is_tried_again(store, error):
    record_failure(store, "trainings/abc", error, attempt=1)
    assert store.read_json(f"trainings/abc/{FILE}")["retryable"] is True
    refuse_if_hopeless(store, "trainings/abc")


def test_a_writer_that_was_replaced_writes_nothing_into_the_folder(store):
    record_failure(store, "trainings/abc", FencedError("Taken over."), attempt=1)
    assert store.read_json(f"trainings/abc/{FILE}") is None


def test_what_a_machine_lacked_is_not_held_against_the_next_attempt(store, monkeypatch):
    monkeypatch.setenv("ROBOIMI_REVISION", "a" * 40)
    record_failure(store, "trainings/abc", RenderError("No GL here."), attempt=1)
    refuse_if_hopeless(store, "trainings/abc")
    record_failure(store, "trainings/abc", NonFiniteError("Too many."), attempt=2)
    with pytest.raises(NonFiniteError):
        refuse_if_hopeless(store, "trainings/abc")

"""A data source that hangs is found, said, recorded, and costs at most what was not yet saved."""

import time

import pytest

from roboimi.storage.store import open_store
from roboimi.vla.training import session, trainer, watchdog
from tests.faults.harness import final_state, fork_training, the_training


def hang_at(step, how, seconds):
    """Before the training: its data source hangs at that step."""

    def before(report):
        trainer.DATA_S = seconds
        real = session.TrainingData.batch

        def batch(self, number):
            if number == step:
                report({"hung_at": time.monotonic()})
                how()
            return real(self, number)

        session.TrainingData.batch = batch

    return before


def in_python():
    time.sleep(3600)


def in_c():
    """Deaf to signals, as a read from a dead network disk is."""
    import signal
    import threading

    signal.pthread_sigmask(signal.SIG_BLOCK, [watchdog.SIGNAL])
    threading.Event().wait(3600)


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        (in_python, 0.5),
        pytest.param(in_c, 0.5, marks=pytest.mark.faults),
        pytest.param(in_python, None, marks=pytest.mark.faults),
        pytest.param(in_c, None, marks=pytest.mark.faults),
    ],
    ids=["soon-python", "soon-c", "shipped-python", "shipped-c"],
)
def test_a_hung_data_source_ends_the_training_with_its_class(
    make_run, unkilled, tmp_path, monkeypatch, note, how, seconds
):
    if seconds:
        monkeypatch.setattr(watchdog, "GRACE_S", 0.5)
    run, uri = make_run(), str(tmp_path / "store")
    log = tmp_path / "log"
    child = fork_training(run, uri, before=hang_at(7, how, seconds or trainer.DATA_S), log=log)
    hung_at = child.next("hung_at")
    assert child.end() == 13, child.said[-1]
    took = time.monotonic() - hung_at
    note(how=how.__name__, found_after_s=round(took, 1))
    assert took < 60
    store = open_store(uri)
    failure = store.read_json(f"{the_training(store)}/FAILURE.json")
    assert (failure["failure_class"], failure["retryable"]) == ("hung", True)
    assert "reading the data of step 7" in failure["reason"]
    assert how.__name__ in log.read_text()  # where all threads were
    again = fork_training(run, uri)
    assert again.end() == 0
    assert final_state(store, again.last("result")) == unkilled()

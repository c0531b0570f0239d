"""How a training failed: `trainings/<key>/FAILURE.json`, and a quick end for what cannot succeed.

The failure classes of the project are in `roboimi/errors.py` and explained in `FAILURES.md` beside it.
"""

import logging
from datetime import UTC, datetime

from roboimi.errors import FencedError, HeldByAnotherError, RoboimiError, StoreError
from roboimi.storage.launch_record import code_revision, failure_fields
from roboimi.storage.store import Store

FILE = "FAILURE.json"
SCHEMA = "roboimi.failure/1"

log = logging.getLogger(__name__)


def record_failure(store: Store, training: str, error: BaseException, attempt: int) -> None:
    """Leave in the training's folder how this attempt ended.

    Whoever does not hold the training writes nothing there: its failure is not the training's.
    """
    if isinstance(error, FencedError | HeldByAnotherError):
        return
    document = {
        "schema": SCHEMA,
        **failure_fields(error),
        "exit_code": getattr(error, "exit_code", 1),
        "attempt": attempt,
        "git_revision": code_revision(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        store.write_json(f"{training}/{FILE}", document)
    except StoreError as problem:
        log.warning("how %s failed could not be recorded: %s", training, problem)


def refuse_if_hopeless(store: Store, training: str) -> None:
    """End at once where the same code failed before in a way that running again cannot help.

    Code with changes that are not committed is another code each time. What is cured outside (GL, the hub, a
    credential) is tried again.

    Raises:
        RoboimiError: of the recorded class, with its sentence.
    """
    failure = store.read_json(f"{training}/{FILE}")
    revision = code_revision()
    if failure is None or failure["retryable"] or revision is None or revision.endswith("-dirty"):
        return
    kind = error_class(failure["failure_class"])
    if failure.get("git_revision") == revision and not kind.cured_outside:
        raise kind(
            f"{training} failed on {failure['at']} with the same code ({failure['failure_class']}: "
            f"{failure['reason'].rstrip('.')}), and running it again cannot help: change what it says, or add "
            "train.retry_failed=true to try all the same."
        )


def error_class(name: str) -> type[RoboimiError]:
    """The exception of a recorded failure class; one of its own for a class that this code does not know."""
    waiting: list[type[RoboimiError]] = [RoboimiError]
    while waiting:
        kind = waiting.pop()
        if kind.failure_class == name:
            return kind
        waiting += kind.__subclasses__()
    return type("RecordedError", (RoboimiError,), {"failure_class": name})

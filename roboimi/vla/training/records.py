"""What a training says of itself in the store: TRAINING.json while it runs, RESULT.json once it is finished.

Needs no deep-learning library, so a finished training is recognised in a moment.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Self

from roboimi.errors import CheckpointError
from roboimi.storage.keys import PREFIX_LENGTH
from roboimi.storage.launch_record import launch_facts
from roboimi.storage.store import Store
from roboimi.vla.config import TrainRun
from roboimi.vla.data.manifest import DatasetRef

TRAINING = "TRAINING.json"
RESULT = "RESULT.json"
TRACKING = "TRACKING.json"
"""Where the curves of a training are to be seen while it runs; only where there is such a place."""
SCHEMA = "roboimi.training/1"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        training: its prefix in the store, `trainings/<key>`.
        checkpoint: prefix of its last checkpoint.
        policy_digest: SHA-256 of the averaged weights; what evaluations are keyed by.
        steps: updates done, skipped ones included.
        skipped: updates left out because something was not finite.
        loss: mean training loss of the last log line; None if all of its updates were skipped.
        validation_loss: of the averaged weights on held-out episodes; None where there are none.
        parameters: trained weights.
        seconds: spent in updates, over all attempts.
        attempts: how often the training was started.
        tracking: what is known of the SwanLab run (`mode`, `id`, `dir`, `url`, `problem`).
        adopted: whether it was found finished, and nothing was trained now.
    """

    training: str
    checkpoint: str
    policy_digest: str
    steps: int
    skipped: int
    loss: float | None
    validation_loss: float | None
    parameters: int
    seconds: float
    attempts: int
    tracking: dict[str, Any]
    adopted: bool = False

    def to_document(self) -> dict[str, Any]:
        """The content of RESULT.json."""
        document = dataclasses.asdict(self)
        del document["adopted"]
        return {"schema": SCHEMA, **document}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """From RESULT.json; `adopted` is True."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known}, adopted=True)


def training_prefix(key: str) -> str:
    """Where a training lies in the store."""
    return f"trainings/{key[:PREFIX_LENGTH]}"


def open_record(
    store: Store, training: str, run: TrainRun, dataset: DatasetRef, fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """Write or continue TRAINING.json: what is trained, and by which attempts.

    Raises:
        CheckpointError: the folder belongs to a training with another fingerprint; the sentence names the fields.
    """
    name = f"{training}/{TRAINING}"
    record = store.read_json(name)
    if record is None:
        record = {"schema": SCHEMA, "training": training, "fingerprint": dict(fingerprint), "attempts": []}
    elif different := differing_fields(record["fingerprint"], fingerprint):
        raise CheckpointError(
            f"{training} in {store.uri} has other settings ({', '.join(different)}): remove that folder, or "
            "use another store."
        )
    facts = launch_facts()
    revisions = {attempt.get("git_revision") for attempt in record["attempts"]} - {facts.get("git_revision")}
    if revisions:
        log.warning("%s was begun by another revision of the code: %s", training, ", ".join(map(str, revisions)))
    record["attempts"] = [*record["attempts"], facts]
    record |= {
        "config": run.config,
        "encoder": run.encoder if run.needs == "images" else None,
        "dataset": {
            "digest": dataset.digest,
            "path": dataset.source or str(dataset.root),
            "contract": dataset.contract.to_dict(),
        },
    }
    store.write_json(name, record)
    return record


def differing_fields(before: Any, now: Any, path: str = "") -> list[str]:
    """Dotted names of what differs between two nested documents."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = sorted(before.keys() | now.keys())
        return [
            field
            for name in names
            for field in differing_fields(before.get(name), now.get(name), f"{path}.{name}" if path else name)
        ]
    # Compared as JSON has them: a tuple is a list.
    same = list(before) == list(now) if isinstance(before, list) and isinstance(now, list | tuple) else before == now
    return [] if same else [path]

"""LATEST.json: the newest checkpoint's name, step and epoch; compared and swapped, never back to a lower epoch."""

import logging
from typing import Any

from roboimi.errors import FencedError, StoreDamagedError, StoreError
from roboimi.storage.store import Store
from roboimi.vla.training.manifest import Damaged, read_failure
from roboimi.vla.training.retention import CHECKPOINT_NAME, Commit

LATEST = "LATEST.json"

log = logging.getLogger(__name__)


class Latest:
    """The pointer of one training.

    Args:
        store: where it lives.
        training: prefix of the training.
    """

    def __init__(self, store: Store, training: str):
        self._store, self._training = store, training
        self._key = f"{training}/{LATEST}"

    def read(self) -> dict[str, Commit]:
        """What it names, whether or not that is still there; empty where nothing was announced yet.

        Raises:
            Damaged: it cannot be read.
            StoreUnavailableError: the store does not answer.
        """
        try:
            latest = self._store.read_json(self._key)
        except StoreError as error:
            raise read_failure(error, f"{LATEST} cannot be read") from error
        if latest is None:
            return {}
        match = CHECKPOINT_NAME.fullmatch(str(latest.get("checkpoint"))) if isinstance(latest, dict) else None
        if match is None:
            raise Damaged(f"{LATEST} names no checkpoint")
        return {match.string: Commit(_epoch(latest), int(match["step"]))}

    def point_at(self, name: str, step: int, epoch: int) -> None:
        """Name another checkpoint; may be repeated. A pointer that cannot be read is written anew.

        Raises:
            FencedError: a writer with a higher epoch was here.
            StoreUnavailableError: the store does not answer.
        """
        document = {"checkpoint": name, "step": step, "epoch": epoch}
        while True:
            try:
                found = self._store.read_versioned(self._key)
            except StoreDamagedError as error:
                log.warning("%s of %s is written anew: %s", LATEST, self._training, error)
                self._store.write_json(self._key, document)
                return
            # Compared before anything is concluded: an answer that was lost leaves our own document here.
            if found and found.document == document:
                return
            if found and _epoch(found.document) > epoch:
                raise FencedError(
                    f"{self._training} in {self._store.uri} was taken over by another writer (epoch "
                    f"{_epoch(found.document)}, this one has {epoch}): nothing to do here, that one goes on."
                )
            if found is None:
                if self._store.create(self._key, document):
                    return
            elif self._store.replace(self._key, document, found.version):
                return


def _epoch(document: Any) -> int:
    """The epoch of whoever wrote it; 0 from before there were epochs."""
    epoch = document.get("epoch") if isinstance(document, dict) else None
    return epoch if isinstance(epoch, int) else 0

"""How far the trainings of a campaign are, from what they have committed to the store."""

import json
from dataclasses import dataclass

from roboimi.errors import StoreError
from roboimi.storage.store import Store
from roboimi.vla.training.latest import Latest
from roboimi.vla.training.manifest import Damaged
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.records import TRACKING


@dataclass(frozen=True)
class Progress:
    """What the newest checkpoint says.

    Attributes:
        step: updates done by then.
        metric: its last loss and rollouts, for people; "" where there are none yet.
        url: where its curves are to be seen; "" where there is no such place.
    """

    step: int
    metric: str
    url: str


class TrainingProgress:
    """Reads the newest checkpoint of trainings, each checkpoint's metrics once.

    Args:
        store: the campaign's.
    """

    def __init__(self, store: Store):
        self._store = store
        self._metrics: dict[tuple[str, str], str] = {}

    def read(self, training: str) -> Progress | None:
        """How far a training is; None where nothing was committed yet, or it cannot be read now.

        Args:
            training: its prefix in the store.
        """
        try:
            newest = Latest(self._store, training).read()
            tracking = self._store.read_json(f"{training}/{TRACKING}") or {}
        except (Damaged, StoreError):
            return None
        for name, commit in newest.items():
            if (training, name) not in self._metrics:
                self._metrics[training, name] = self._last_metric(f"{training}/checkpoints/{name}")
            return Progress(commit.step, self._metrics[training, name], str(tracking.get("url", "")))
        return None

    def _last_metric(self, checkpoint: str) -> str:
        try:
            folder = self._store.fetch(checkpoint, [METRICS])
            lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        except (StoreError, OSError, ValueError):
            return ""  # A checkpoint that was removed meanwhile, or one from before they held metrics.
        last = {line["kind"]: line for line in lines}
        parts = []
        if (loss := last.get("train", {}).get("loss")) is not None:
            parts.append(f"loss {loss:.4f}")
        if (rate := last.get("rollout", {}).get("success_rate")) is not None:
            parts.append(f"success {rate:.0%}")
        return ", ".join(parts)

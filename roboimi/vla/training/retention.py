"""Which checkpoints of a training may go: by rank where they are committed, by age where they never were.

A committed checkpoint goes when `keep` newer ones are known to be good: written by this process, or read and verified
by it. One that is known to be damaged goes at once. What LATEST names stays in any case.

A folder without a commit is garbage of a writer that died, or the work of one that lives. It goes at once where its
writer is this one, or is known to be dead; else after `UNCOMMITTED_AFTER_S`, counted from when it was first seen.
"""

import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from roboimi.storage.store import Store

UNCOMMITTED_AFTER_S = 6 * 3600.0
SEEN = "UNCOMMITTED.json"

CHECKPOINT_NAME = re.compile(r"(?P<step>\d{8,})-(?:e(?P<epoch>\d+)-)?[0-9a-f]{8}")
"""`<step>-e<epoch>-<nonce>`; names from before there were epochs lack theirs."""


@dataclass(frozen=True, order=True)
class Commit:
    """Where a checkpoint stands among the others: a later epoch's come after all of an earlier one's.

    Attributes:
        epoch: of its writer; -1 where the manifest cannot be read.
        step: updates done; -1 where the manifest cannot be read.
    """

    epoch: int = -1
    step: int = -1

    @property
    def readable(self) -> bool:
        """Whether the manifest could be read."""
        return self.step >= 0


class Retention:
    """What one writer may remove.

    Args:
        store: where they live.
        training: prefix of the training.
        keep: how many verified ones are kept.
        epoch: of this writer.
        abandoned: an epoch whose writer is known to be dead.
    """

    def __init__(self, store: Store, training: str, *, keep: int, epoch: int, abandoned: int | None = None):
        self._store, self._training = store, training
        self._keep, self._dead = keep, {epoch, abandoned} - {None}

    def removable(
        self,
        names: Iterable[str],
        commits: Mapping[str, Commit],
        announced: Collection[str],
        *,
        whole: Collection[str],
        damaged: Collection[str],
        note: bool = True,
    ) -> list[str]:
        """The checkpoints that may go now.

        Args:
            names: all checkpoint folders.
            commits: those that are committed.
            announced: what LATEST names.
            whole: those whose bytes are known to be what was committed.
            damaged: those whose bytes are known not to be.
            note: whether unfinished ones that are seen for the first time are noted.
        """
        kept = self._worth_keeping(commits, whole, damaged) | set(announced)
        uncommitted = [name for name in names if name not in commits]
        return [name for name in commits if name not in kept] + self._abandoned(uncommitted, note)

    def _worth_keeping(
        self, commits: Mapping[str, Commit], whole: Collection[str], damaged: Collection[str]
    ) -> set[str]:
        ranked = sorted(
            (name for name in commits if commits[name].readable and name not in damaged),
            key=lambda name: (commits[name], name),
            reverse=True,
        )
        kept: set[str] = set()
        verified = 0
        for name in ranked:
            if verified == self._keep:
                break
            kept.add(name)
            verified += name in whole
        return kept

    def _abandoned(self, uncommitted: list[str], note: bool) -> list[str]:
        ended = [name for name in uncommitted if _epoch_of(name) in self._dead]
        others = [name for name in uncommitted if name not in ended]
        return ended + (self._old(others, note) if others else [])

    def _old(self, names: list[str], note: bool) -> list[str]:
        """Those first seen long enough ago; the others are noted."""
        key, now = f"{self._training}/{SEEN}", time.time()
        noted = self._store.read_json(key) or {}
        seen = {name: noted.get(name, now) for name in names}
        if note and seen != noted:
            self._store.write_json(key, seen)
        return [name for name in names if now - seen[name] >= UNCOMMITTED_AFTER_S]


def _epoch_of(name: str) -> int:
    match = CHECKPOINT_NAME.fullmatch(name)
    return int(match["epoch"] or 0) if match else 0

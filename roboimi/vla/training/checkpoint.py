"""Checkpoints of a training: whole or not there, verified before use, never overwritten, without pickle.

```
trainings/<key>/
    LATEST.json                     the newest checkpoint's name, step and epoch; compared and swapped
    checkpoints/<step>-e<epoch>-<nonce>/    8 digits, 8 hex digits; the nonce keeps two writers apart
        model.safetensors           trainable parameters and buffers (normalisers) of the policy, by name
        ema.safetensors             the same with averaged parameters: what rollouts use
        optimizer.safetensors       AdamW: <parameter>/exp_avg, <parameter>/exp_avg_sq, <parameter>/step
        rng.safetensors             generators of Python, NumPy, torch and each CUDA device
        state.json                  step, counters, the open window of the metrics, where all this comes from
        metrics.jsonl               the metrics file up to this step
        MANIFEST.json               size and SHA-256 of each file, epoch, its own digest; written last: the commit
    spool/<checkpoint>.json         on the writer's machine alone: manifests of what is written but not committed yet
```
A save is four acts, each of which may be killed, fail or be repeated: `spool` (files and hashes, on this machine),
`commit` (into the store), `announce` (LATEST), `collect` (remove what is no longer needed). A writer's epoch comes from
its lease; LATEST never goes back to a lower one, so a writer that was taken over finds out there.

Reading is in `reader.py`, what may be removed in `retention.py`, the order of it all in the background in `writer.py`.
"""

import json
import logging
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboimi.errors import DiskFullError, StoreError
from roboimi.storage.atomic import write_json_atomically, writing
from roboimi.storage.store import Store
from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.manifest import (
    MANIFEST,
    STATE,
    TENSOR_FILES,
    Damaged,
    check_manifest,
    file_entry,
    new_manifest,
    verified_bytes,
)
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.reader import CheckpointReader
from roboimi.vla.training.retention import Retention

SPOOL = "spool"

if TYPE_CHECKING:
    from roboimi.vla.training.snapshot import Snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spooled:
    """A checkpoint that is whole on this machine.

    Attributes:
        name: of the checkpoint.
        manifest: what its commit will say.
    """

    name: str
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done."""
        return self.manifest["step"]


class Checkpoints(CheckpointReader):
    """The checkpoints of one training, for their writer.

    Args:
        store: where they live.
        training: prefix of the training, `trainings/<key>`.
        keep: how many committed ones are kept.
        epoch: of the writer's lease; 0 for readers and where there is no lease.
        abandoned: an earlier epoch whose writer is known to be dead: what it left uncommitted may go at once.
    """

    def __init__(self, store: Store, training: str, keep: int = 3, *, epoch: int = 0, abandoned: int | None = None):
        super().__init__(store, training)
        self._epoch = epoch
        self._under_way: set[str] = set()
        self._retention = Retention(store, training, keep=keep, epoch=epoch, abandoned=abandoned)

    def save(self, snapshot: "Snapshot") -> str:
        """Write, commit and announce a checkpoint, then remove those that are no longer needed.

        Returns:
            Its name.

        Raises:
            DiskFullError: no room; nothing of the new checkpoint is left and the older ones are as they were.
            FencedError: another writer has taken over.
            StoreUnavailableError: the store does not answer.
        """
        spooled = self.spool(snapshot)
        self.commit(spooled)
        self.announce(spooled)
        self.collect()
        return spooled.name

    def spool(self, snapshot: "Snapshot") -> Spooled:
        """Write and hash the files on this machine, and note that they are whole.

        Raises:
            DiskFullError: no room; nothing of it is left.
        """
        name = f"{snapshot.step:08d}-e{self._epoch}-{secrets.token_hex(4)}"
        self._under_way.add(name)  # before there is a folder that a collection could take for a dead writer's
        folder = self._store.folder(self.prefix(name))
        try:
            with writing(folder, "a checkpoint"):
                _write_files(snapshot, folder)
                files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
            spooled = Spooled(name, new_manifest(name, snapshot.step, self._epoch, files))
            write_json_atomically(self._spool_path(name), spooled.manifest)
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            self._under_way.discard(name)
            raise
        return spooled

    def discard(self, spooled: Spooled) -> None:
        """Give up a spooled checkpoint: a newer one takes its place."""
        self._spool_path(spooled.name).unlink(missing_ok=True)
        folder = self._store.folder(self.prefix(spooled.name))
        (folder / MANIFEST).unlink(missing_ok=True)  # first: what is cut short here was never finished
        shutil.rmtree(folder, ignore_errors=True)
        self._under_way.discard(spooled.name)

    def commit(self, spooled: Spooled) -> None:
        """Bring a spooled checkpoint into the store, its manifest last; may be repeated.

        Raises:
            DiskFullError: no room; nothing of it is left.
            StoreUnavailableError: the store does not answer; it is still spooled.
        """
        folder = self._store.folder(self.prefix(spooled.name))
        if missing := [file for file in spooled.manifest["files"] if not (folder / file).is_file()]:
            raise StoreError(
                f"{folder} has lost {', '.join(missing)} before it was committed: run the same command again."
            )
        try:
            with writing(folder, "a checkpoint"):
                committed = self._store.publish(self.prefix(spooled.name), MANIFEST, spooled.manifest)
        except DiskFullError:
            self.discard(spooled)
            raise
        if committed != spooled.manifest:
            raise StoreError(
                f"{self.prefix(spooled.name)} in {self._store.uri} was committed by somebody else: remove that folder."
            )
        self.whole.add(spooled.name)

    def announce(self, spooled: Spooled) -> None:
        """Point LATEST at a committed checkpoint; may be repeated.

        Raises:
            FencedError: a writer with a higher epoch was here.
        """
        self._latest.point_at(spooled.name, spooled.step, self._epoch)
        self._spool_path(spooled.name).unlink(missing_ok=True)
        self._under_way.discard(spooled.name)

    def collect(self) -> None:
        """Remove checkpoints that are no longer needed, and what dead writers left unfinished."""
        for name in self.removable():
            self.remove(name)

    def removable(self, note: bool = True) -> list[str]:
        """What `collect` would remove now.

        Args:
            note: whether folders without a commit that are seen for the first time are noted in the store.
        """
        announced: set[str] = set()
        try:
            announced = set(self.announced())
        except Damaged as damage:
            log.warning("%s of %s: %s", LATEST, self._training, damage)
        return self._retention.removable(
            set(self.names()) - self._under_way,
            self.commits(),
            announced,
            whole=self.whole,
            damaged=self.damaged,
            note=note,
        )

    def remove(self, name: str) -> None:
        """Remove one checkpoint, its commit first."""
        self._store.remove(self.prefix(name), MANIFEST)

    def recover(self) -> str | None:
        """Commit what an earlier writer finished on this machine and could not bring into the store, if it is newer.

        Returns:
            The checkpoint's name, if there was one.
        """
        spool, recovered = self._store.folder(f"{self._training}/{SPOOL}"), None
        committed = {name: commit.step for name, commit in self.commits().items() if commit.readable}
        for path in sorted(spool.glob("*.json"), reverse=True):
            name = path.stem
            if name not in committed:
                try:
                    spooled = self._spooled_before(path)
                    if spooled.step > max(committed.values(), default=-1):
                        self.commit(spooled)
                        committed[name], recovered = spooled.step, name
                        log.warning("checkpoint %s was still waiting on this machine and is in the store now", name)
                    else:
                        self.discard(spooled)
                except Damaged as damage:
                    log.warning("checkpoint %s, left behind on this machine, is not whole: %s", name, damage)
            path.unlink(missing_ok=True)
        return recovered

    def take_over(self, newest: tuple[str, int] | None) -> None:
        """Mark LATEST with this writer's epoch, so that whoever wrote before finds out at its next announcement.

        Args:
            newest: name and step of the checkpoint that training goes on from; None: there is none to point at.

        Raises:
            FencedError: a writer with a higher epoch was here.
        """
        if newest is not None:
            self._latest.point_at(*newest, self._epoch)

    def _spooled_before(self, path: Path) -> Spooled:
        """What an earlier process spooled, as this writer would commit it."""
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise Damaged(f"{path.name} cannot be read") from error
        check_manifest(manifest, path.stem)
        folder = self._store.folder(self.prefix(path.stem))
        for file, entry in manifest["files"].items():
            verified_bytes(folder / file, entry)
        return Spooled(path.stem, new_manifest(path.stem, manifest["step"], self._epoch, manifest["files"]))

    def _spool_path(self, name: str) -> Path:
        return self._store.folder(f"{self._training}/{SPOOL}") / f"{name}.json"


def _write_files(snapshot: "Snapshot", folder: Path) -> None:
    import safetensors.torch

    for stem in TENSOR_FILES:
        safetensors.torch.save_file(snapshot.tensors[stem], folder / f"{stem}.safetensors")
    (folder / STATE).write_text(json.dumps(snapshot.state, indent=1, sort_keys=True, allow_nan=False) + "\n")
    (folder / METRICS).write_text(snapshot.metrics or "")

"""Reading checkpoints: which there are, whether they are whole, and what they hold.

A reader tries the committed checkpoints from the newest (epoch, step) down, until one has exactly the bytes that its
manifest promises (a flipped bit is no error to safetensors itself). LATEST and the manifests say whether a commit ever
existed. Listing and verifying need no deep-learning library; only reading tensors does.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from roboimi.errors import CheckpointError, StoreError
from roboimi.storage.store import Store
from roboimi.vla.training.latest import Latest
from roboimi.vla.training.manifest import (
    MANIFEST,
    STATE,
    TENSOR_FILES,
    Damaged,
    check_manifest,
    check_names,
    read_failure,
    verified_bytes,
)
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.records import TRAINING
from roboimi.vla.training.retention import CHECKPOINT_NAME, Commit

if TYPE_CHECKING:
    from torch import Tensor

    from roboimi.vla.agent import VLAAgent
    from roboimi.vla.training.snapshot import Snapshot

log = logging.getLogger(__name__)


class CheckpointReader:
    """The checkpoints of one training in a store.

    Args:
        store: where they live.
        training: prefix of the training, `trainings/<key>`.

    Attributes:
        whole: names of those whose bytes are known to be what was committed.
        damaged: names of those whose bytes are known not to be.
    """

    def __init__(self, store: Store, training: str):
        self._store, self._training = store, training
        self._latest = Latest(store, training)
        self.whole: set[str] = set()
        self.damaged: set[str] = set()

    def prefix(self, name: str) -> str:
        """Where the files of one checkpoint lie in the store."""
        return f"{self._training}/checkpoints/{name}"

    def names(self) -> list[str]:
        """All checkpoint folders, those that were never finished too."""
        return list(filter(CHECKPOINT_NAME.fullmatch, self._store.list(f"{self._training}/checkpoints")))

    def commits(self) -> dict[str, Commit]:
        """Where each committed checkpoint stands, by its name."""
        found = {}
        for name in self.names():
            try:
                manifest = self.manifest(name)
            except Damaged:
                found[name] = Commit()
            else:
                if manifest is not None:
                    found[name] = Commit(manifest.get("epoch", 0), manifest["step"])
        return found

    def announced(self) -> dict[str, Commit]:
        """What LATEST names; see `Latest.read`."""
        return self._latest.read()

    def manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest of a checkpoint once it is known to be whole; None where the checkpoint was never finished.

        Raises:
            Damaged: it is not as it was written.
        """
        try:
            manifest = self._store.committed(self.prefix(name), MANIFEST)
        except StoreError as error:
            raise read_failure(error, f"{MANIFEST} cannot be read") from error
        if manifest is not None:
            check_manifest(manifest, name)
        return manifest

    def verify(self, name: str, count: Callable[[int], None] = lambda size: None) -> None:
        """Compare every byte of a checkpoint with its manifest.

        Args:
            name: of the checkpoint.
            count: told the bytes of each file once it is verified.

        Raises:
            Damaged: as in `read`.
        """
        manifest = self._manifest_of(name)
        check_names(manifest, self._store.list(self.prefix(name)))
        for file, entry in manifest["files"].items():
            self._verified(name, (file,))
            count(entry["bytes"])
        self.whole.add(name)

    def newest(self) -> "tuple[str, Snapshot] | None":
        """The newest checkpoint whose bytes are what was committed, or None if nothing was ever committed.

        Raises:
            CheckpointError: there were commits, but none can be read; a fresh start would hide the loss.
            StoreUnavailableError: the store does not answer.
        """
        commits, reasons = self.commits(), []
        try:
            # Only evidence: a writer killed between a commit and its announcement has committed all the same.
            commits |= {name: commit for name, commit in self.announced().items() if name not in commits}
        except Damaged as damage:
            reasons.append(str(damage))
        for name in sorted(commits, key=lambda name: (commits[name], name), reverse=True):
            try:
                return name, self.read(name)
            except Damaged as damage:
                log.warning("checkpoint %s is damaged (%s); going back to the one before", name, damage)
                self.damaged.add(name)
                reasons.append(f"{name}: {damage}")
        if reasons:
            raise CheckpointError(
                f"{self._training} in {self._store.uri} has checkpoints, but none can be read ({'; '.join(reasons)}): "
                "bring them back from a copy, or remove that folder to train from the beginning."
            )
        return None

    def read(self, name: str) -> "Snapshot":
        """Read and verify one checkpoint.

        Raises:
            Damaged: a file is missing, is too many, has another size or other bytes, or the manifest is not whole.
            StoreUnavailableError: the store does not answer.
        """
        from roboimi.vla.training.snapshot import Snapshot

        manifest = self._manifest_of(name)
        check_names(manifest, self._store.list(self.prefix(name)))
        content = self._verified(name, tuple(manifest["files"]))
        tensors = {stem: _tensors(content, stem) for stem in TENSOR_FILES}
        state = json.loads(content[STATE])
        if manifest["step"] != state["step"]:
            raise Damaged(f"{MANIFEST} names another step than {STATE}")
        self.whole.add(name)
        metrics = content[METRICS].decode() if METRICS in content else None
        return Snapshot(state["step"], tensors, state, metrics)

    def read_weights(self, name: str, which: str) -> "dict[str, Tensor]":
        """Read and verify only the weights of one checkpoint, `ema` or `model`.

        Raises:
            Damaged: as in `read`.
        """
        return _tensors(self._verified(name, (f"{which}.safetensors",)), which)

    def policy_digest(self, name: str) -> str:
        """SHA-256 of the averaged weights: equal for equal policies, however often their training was resumed."""
        return self._manifest_of(name)["files"]["ema.safetensors"]["sha256"]

    def _verified(self, name: str, files: Sequence[str]) -> dict[str, bytes]:
        """Content of `files`, each with the bytes that were committed."""
        entries = self._manifest_of(name)["files"]
        if missing := set(files) - set(entries):
            raise Damaged(f"{MANIFEST} lacks {', '.join(sorted(missing))}")
        try:
            folder = self._store.fetch(self.prefix(name), files)
        except StoreError as error:
            raise read_failure(error, str(error)) from error
        return {file: verified_bytes(folder / file, entries[file]) for file in files}

    def _manifest_of(self, name: str) -> dict[str, Any]:
        manifest = self.manifest(name)
        if manifest is None:
            raise Damaged(f"{MANIFEST} is missing")
        return manifest


def load_policy(
    store: Store, prefix: str, which: str = "ema", *, vision_model: Any = None, device: str = "auto"
) -> "VLAAgent":
    """Build a trained policy for rollouts.

    Args:
        store: where it was trained.
        prefix: of a training (its newest checkpoint), or of one checkpoint.
        which: `ema` (averaged weights) or `model` (those of the last update).
        vision_model: the frozen tower where it is already loaded; None: loaded if the policy sees.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The agent in eval mode, with the normalisers that it was trained with.

    Raises:
        CheckpointError: there is no such training or checkpoint, it is damaged, or it does not fit this code.
        EncoderError: the tower cannot be loaded.
    """
    from roboimi.vla.build import build_agent
    from roboimi.vla.training.device import choose_device

    training, _, name = prefix.partition("/checkpoints/")
    record = store.read_json(f"{training}/{TRAINING}")
    checkpoints = CheckpointReader(store, training)
    if record is None:
        raise CheckpointError(f"Store {store.uri} has no training {training}: train it first, or correct the name.")
    try:
        if not name:
            newest = checkpoints.newest()
            if newest is None:
                raise Damaged("no checkpoint was ever committed")
            name = newest[0]
        weights = checkpoints.read_weights(name, which)
    except Damaged as damage:
        raise CheckpointError(
            f"The policy {prefix} in {store.uri} cannot be loaded ({damage}): choose another checkpoint, or train "
            "again."
        ) from damage
    agent = build_agent(record["config"], vision_model=vision_model)
    agent.load_trainable_state_dict(weights)
    return agent.to(choose_device(device)).eval()


def _tensors(content: Mapping[str, bytes], stem: str) -> "dict[str, Tensor]":
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        return safetensors.torch.load(content[f"{stem}.safetensors"])
    except SafetensorError as error:
        raise Damaged(f"{stem}.safetensors is not what this code writes ({error})") from error

"""Checkpoints of a training: whole or not there, verified before use, never overwritten, without pickle.

```
trainings/<key>/
    LATEST.json                     the newest checkpoint's name and step, for people and for `status`
    checkpoints/<step>-<nonce>/     8 digits, 8 hex digits; the nonce keeps two writers apart
        model.safetensors           trainable parameters and buffers (normalisers) of the policy, by name
        ema.safetensors             the same with averaged parameters: what rollouts use
        optimizer.safetensors       AdamW: <parameter>/exp_avg, <parameter>/exp_avg_sq, <parameter>/step
        rng.safetensors             generators of Python, NumPy, torch and each CUDA device
        state.json                  step, counters, the open window of the metrics, where all this comes from
        MANIFEST.json               size and SHA-256 of each file; written last: the commit
```
A reader tries the committed checkpoints from the newest step down, until one has exactly the bytes that its manifest
promises (a flipped bit is no error to safetensors itself). LATEST and the manifests say whether a commit ever existed.
"""

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from roboimi.errors import CheckpointError, StoreError
from roboimi.storage.atomic import writing
from roboimi.storage.keys import sha256_file
from roboimi.storage.store import Store
from roboimi.vla.training.device import choose_device
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.records import TRAINING
from roboimi.vla.training.rng import capture_rng, restore_rng

if TYPE_CHECKING:
    from roboimi.vla.agent import VLAAgent

SCHEMA = "roboimi.checkpoint/1"
MANIFEST = "MANIFEST.json"
LATEST = "LATEST.json"
STATE = "state.json"
TENSOR_FILES = ("model", "ema", "optimizer", "rng")
FILES = (*(f"{stem}.safetensors" for stem in TENSOR_FILES), STATE)

_NAME = re.compile(r"\d{8,}-[0-9a-f]{8}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A training at one step boundary, in host memory and independent of the live training.

    Attributes:
        step: updates done (skipped ones included).
        tensors: file stem → name → tensor, for each of `TENSOR_FILES`.
        state: counters and the like, plain JSON types.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Damaged(Exception):
    """A checkpoint that does not hold what its manifest promises; the message is the reason."""


def take_snapshot(
    step: int, agent: torch.nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Snapshot:
    """Copy everything that the next step depends on to host memory.

    A copy also on the CPU: a tensor that is only referred to would have changed by the time it is written.
    """
    model = _host_copy(agent.trainable_state_dict())
    averaged = model | _host_copy(ema.average)
    moments = {
        f"{name}/{kind}": value
        for name, parameter in _named_parameters(optimizer)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    tensors = {"model": model, "ema": averaged, "optimizer": _host_copy(moments), "rng": _host_copy(capture_rng())}
    return Snapshot(step, tensors, {**state, "step": step, "ema_updates": ema.updates})


def restore(snapshot: Snapshot, agent: torch.nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
    """Make a freshly built training continue from `snapshot`: weights, averages, moments and random generators.

    Raises:
        CheckpointError: the snapshot belongs to another architecture.
    """
    try:
        agent.load_trainable_state_dict(snapshot.tensors["model"])
        ema.load(snapshot.tensors["ema"], snapshot.state["ema_updates"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint of step {snapshot.step} does not fit the policy ({' '.join(str(error).split())}): "
            "train under another configuration or with the code that wrote it."
        ) from error
    moments = snapshot.tensors["optimizer"]
    for name, parameter in _named_parameters(optimizer):
        # A copy: the optimiser works in place, the snapshot stays what it was.
        optimizer.state[parameter] = {
            kind: moments[f"{name}/{kind}"].to(parameter.device, copy=True)
            for kind in ("step", "exp_avg", "exp_avg_sq")
            if f"{name}/{kind}" in moments
        }
    restore_rng(snapshot.tensors["rng"])


class Checkpoints:
    """The checkpoints of one training in a store; one writer at a time.

    Args:
        store: where they live.
        training: prefix of the training, `trainings/<key>`.
        keep: how many committed ones are kept.
    """

    def __init__(self, store: Store, training: str, keep: int = 3):
        self._store, self._training, self._keep = store, training, keep
        self._damaged: set[str] = set()

    def prefix(self, name: str) -> str:
        """Where the files of one checkpoint lie in the store."""
        return f"{self._training}/checkpoints/{name}"

    def save(self, snapshot: Snapshot) -> str:
        """Write, commit and announce a checkpoint, then remove those that are no longer needed.

        Returns:
            Its name.

        Raises:
            DiskFullError: no room; nothing of the new checkpoint is left and the older ones are as they were.
        """
        name = f"{snapshot.step:08d}-{secrets.token_hex(4)}"
        folder = self._store.folder(self.prefix(name))
        try:
            with writing(folder, "a checkpoint"):
                _write_files(snapshot, folder)
                files = {path.name: _file_entry(path) for path in sorted(folder.iterdir())}
                manifest = {"schema": SCHEMA, "step": snapshot.step, "files": files}
                self._store.publish(self.prefix(name), MANIFEST, manifest)
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with writing(folder, "a checkpoint"):
            self._store.write_json(f"{self._training}/{LATEST}", {"checkpoint": name, "step": snapshot.step})
            self._remove_old()
        return name

    def newest(self) -> tuple[str, Snapshot] | None:
        """The newest checkpoint whose bytes are what was committed, or None if nothing was ever committed.

        Raises:
            CheckpointError: there were commits, but none can be read; a fresh start would hide the loss.
        """
        steps, reasons = self._committed_steps(), []
        try:
            # Only evidence: a writer killed between a commit and its announcement has committed all the same.
            steps |= {name: step for name, step in self._announced().items() if name not in steps}
        except Damaged as damage:
            reasons.append(str(damage))
        for name in sorted(steps, key=lambda name: (steps[name], name), reverse=True):
            try:
                return name, self.read(name)
            except Damaged as damage:
                log.warning("checkpoint %s is damaged (%s); going back to the one before", name, damage)
                self._damaged.add(name)
                reasons.append(f"{name}: {damage}")
        if reasons:
            raise CheckpointError(
                f"{self._training} in {self._store.uri} has checkpoints, but none can be read ({'; '.join(reasons)}): "
                "bring them back from a copy, or remove that folder to train from the beginning."
            )
        return None

    def read(self, name: str) -> Snapshot:
        """Read and verify one checkpoint.

        Raises:
            Damaged: a file is missing, has another size or other bytes, or the manifest itself is unreadable.
        """
        content = self._verified(name, FILES)
        tensors = {stem: _tensors(content, stem) for stem in TENSOR_FILES}
        state = json.loads(content[STATE])
        # The manifest's own bytes are under no hash: what it says must agree with what is.
        if self._committed_steps().get(name) != state["step"]:
            raise Damaged(f"{MANIFEST} names another step than {STATE}")
        return Snapshot(state["step"], tensors, state)

    def read_weights(self, name: str, which: str) -> dict[str, Tensor]:
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
        manifest = self._manifest_of(name)
        folder = self._store.fetch(self.prefix(name))
        try:
            return {file: _verified_bytes(folder / file, manifest["files"][file]) for file in files}
        except (KeyError, TypeError) as error:
            raise Damaged(f"{MANIFEST} does not describe a checkpoint") from error

    def _announced(self) -> dict[str, int]:
        """What LATEST names, whether or not it is still there."""
        try:
            latest = self._store.read_json(f"{self._training}/{LATEST}")
        except StoreError as error:
            raise Damaged(f"{LATEST} cannot be read") from error
        if latest is None:
            return {}
        name = str(latest.get("checkpoint"))
        if not _NAME.fullmatch(name):
            raise Damaged(f"{LATEST} names no checkpoint")
        return {name: int(name.split("-")[0])}

    def _committed_steps(self) -> dict[str, int]:
        """Step of each committed checkpoint by its name; -1 where the manifest cannot be read."""
        steps = {}
        for name in filter(_NAME.fullmatch, self._store.list(f"{self._training}/checkpoints")):
            try:
                manifest = self._manifest(name)
            except Damaged:
                steps[name] = -1
            else:
                if manifest is not None:
                    steps[name] = manifest["step"] if isinstance(manifest.get("step"), int) else -1
        return steps

    def _manifest_of(self, name: str) -> dict[str, Any]:
        manifest = self._manifest(name)
        if manifest is None:
            raise Damaged(f"{MANIFEST} is missing")
        return manifest

    def _manifest(self, name: str) -> dict[str, Any] | None:
        try:
            manifest = self._store.committed(self.prefix(name), MANIFEST)
        except StoreError as error:
            raise Damaged(f"{MANIFEST} cannot be read") from error
        if not isinstance(manifest, dict | None):
            raise Damaged(f"{MANIFEST} does not describe a checkpoint")
        return manifest

    def _remove_old(self) -> None:
        """Keep the `keep` newest commits; damaged ones, and folders that a killed writer never committed, go too."""
        steps = {name: step for name, step in self._committed_steps().items() if name not in self._damaged}
        good = sorted((name for name in steps if steps[name] >= 0), key=lambda name: (steps[name], name))
        for name in filter(_NAME.fullmatch, self._store.list(f"{self._training}/checkpoints")):
            if name not in good[-self._keep :]:
                self._store.remove(self.prefix(name), MANIFEST)


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

    training, _, name = prefix.partition("/checkpoints/")
    record = store.read_json(f"{training}/{TRAINING}")
    checkpoints = Checkpoints(store, training)
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


def _write_files(snapshot: Snapshot, folder: Path) -> None:
    for stem in TENSOR_FILES:
        safetensors.torch.save_file(snapshot.tensors[stem], folder / f"{stem}.safetensors")
    (folder / STATE).write_text(json.dumps(snapshot.state, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _file_entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _tensors(content: Mapping[str, bytes], stem: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content[f"{stem}.safetensors"])
    except SafetensorError as error:
        raise Damaged(f"{stem}.safetensors is not what this code writes ({error})") from error


def _verified_bytes(path: Path, entry: dict[str, Any]) -> bytes:
    """The file's bytes, read once: what was hashed is what is used."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) != entry["bytes"]:
        raise Damaged(f"{path.name} has {len(content)} bytes instead of {entry['bytes']}")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise Damaged(f"{path.name} has other content than was committed")
    return content


def _host_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)

"""The manifest of a checkpoint: what it holds, by size and SHA-256, and a digest of the manifest itself."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from roboimi.errors import StoreAccessError, StoreError, StoreUnavailableError
from roboimi.storage.keys import sha256_file, sha256_json
from roboimi.vla.training.metrics import FILE as METRICS

SCHEMA = "roboimi.checkpoint/2"
OLD_SCHEMA = "roboimi.checkpoint/1"
"""Manifests without a digest of their own, of checkpoints without metrics; still read."""
MANIFEST = "MANIFEST.json"
TENSOR_FILES = ("model", "ema", "optimizer", "rng")
STATE = "state.json"
OLD_FILES = (*(f"{stem}.safetensors" for stem in TENSOR_FILES), STATE)
FILES = (*OLD_FILES, METRICS)


class Damaged(Exception):
    """A checkpoint that does not hold what its manifest promises; the message is the reason."""


def new_manifest(name: str, step: int, epoch: int, files: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of checkpoint `name`.

    Args:
        name: of the checkpoint.
        step: updates done.
        epoch: of the writer's lease.
        files: name → entry, from `file_entry`.
    """
    manifest = {
        "schema": SCHEMA,
        "checkpoint": name,
        "step": step,
        "epoch": epoch,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": dict(files),
    }
    return {**manifest, "digest": sha256_json(manifest)}


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of one file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def check_manifest(manifest: Any, name: str) -> None:
    """Make sure that a manifest is one of this checkpoint, and as it was written.

    Raises:
        Damaged: it is not.
    """
    try:
        entries = manifest["files"].values()
        whole = isinstance(manifest["step"], int) and all({"bytes", "sha256"} <= entry.keys() for entry in entries)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not set(OLD_FILES) <= set(manifest["files"]):
        raise Damaged(f"{MANIFEST} does not describe a checkpoint")
    if manifest.get("schema") == OLD_SCHEMA:
        return
    content = {key: value for key, value in manifest.items() if key != "digest"}
    if manifest.get("digest") != sha256_json(content):
        raise Damaged(f"{MANIFEST} has other content than was written")
    if manifest.get("checkpoint") != name:
        raise Damaged(f"{MANIFEST} belongs to another checkpoint")


def check_names(manifest: Mapping[str, Any], names: Sequence[str]) -> None:
    """Make sure that a checkpoint has exactly the files of its manifest.

    Raises:
        Damaged: one is missing, or one was never part of it.
    """
    expected = {*manifest["files"], MANIFEST}
    if extra := set(names) - expected:
        raise Damaged(f"{', '.join(sorted(extra))} was never part of it")
    if missing := expected - set(names):
        raise Damaged(f"{', '.join(sorted(missing))} is missing")


def verified_bytes(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The file's bytes, read once: what was hashed is what is used.

    Raises:
        Damaged: they are not what was committed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) != entry["bytes"]:
        raise Damaged(f"{path.name} has {len(content)} bytes instead of {entry['bytes']}")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise Damaged(f"{path.name} has other content than was committed")
    return content


def read_failure(error: StoreError, reason: str) -> Exception:
    """What a failed read means: damage, unless the store did not answer or refuses, which says nothing of the bytes."""
    return error if isinstance(error, StoreUnavailableError | StoreAccessError) else Damaged(reason)

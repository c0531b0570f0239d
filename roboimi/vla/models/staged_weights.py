"""Weights of a vision tower from the Hugging Face hub, staged once in a store and read from there by every pod.

    encoders/<organisation>/<repository>/<revision>/
        config.json, model.safetensors, ...     the files of that commit, never code, never pickle
        MANIFEST.json                           names, sizes and SHA-256; written last: without it nothing is staged

The environment variable `ROBOIMI_ENCODERS` names the store; the steps of a campaign set it to their own. What is read
is compared with the manifest, byte for byte, and then loaded without asking the network for anything. Needs no torch.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from roboimi.errors import EncoderError
from roboimi.storage.byte_progress import ByteProgress
from roboimi.storage.keys import sha256_file, sha256_json
from roboimi.storage.store import Store, is_segment, open_store
from roboimi.vla.models.encoder_spec import EncoderSpec

STORE_VARIABLE = "ROBOIMI_ENCODERS"
"""Environment variable: URI of the store that staged weights are looked for in."""

ENCODERS = "encoders"
MANIFEST = "MANIFEST.json"
SCHEMA = 1
CONFIG = "config.json"

STAGED_FILES = ("config.json", "preprocessor_config.json", "model.safetensors.index.json", "*.safetensors")
"""What is taken of a repository: nothing that runs code when it is read."""

_STAGED_NAME = re.compile(r"(?:config|preprocessor_config|model\.safetensors\.index)\.json|\w[\w.-]*\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StagedFile:
    """One file: its size and the SHA-256 of its bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class StagedManifest:
    """What is staged of one commit of a repository.

    Attributes:
        name: of the repository.
        revision: its commit, 40 hex digits.
        files: by name.
    """

    name: str
    revision: str
    files: Mapping[str, StagedFile]

    @property
    def digest(self) -> str:
        """Hex SHA-256 that follows every byte that is staged; the same wherever the same files are staged."""
        return sha256_json(self._content())

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """As it is written."""
        return {**self._content(), "digest": self.digest}

    def _content(self) -> dict[str, Any]:
        files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sorted(self.files.items())}
        return {"schema": SCHEMA, "name": self.name, "revision": self.revision, "files": files}

    @classmethod
    def from_dict(cls, document: dict[str, Any], spec: EncoderSpec, where: str) -> Self:
        """Read what `to_dict` gave.

        Raises:
            EncoderError: it is of another version, of other weights, or was changed after it was written.
        """
        if document.get("schema") != SCHEMA:
            raise EncoderError(
                f"{where} has the schema {document.get('schema')!r}, this version knows {SCHEMA}: stage the weights "
                "with the version of roboimi that reads them."
            )
        try:
            files = {name: StagedFile(int(file["bytes"]), file["sha256"]) for name, file in document["files"].items()}
            manifest = cls(document["name"], document["revision"], files)
            sound = manifest.digest == document["digest"] and all(map(_is_sound, files.items()))
        except (KeyError, TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise EncoderError(f"{where} was changed after it was written: remove it and stage the weights again.")
        if (manifest.name, manifest.revision) != (spec.name, spec.revision):
            raise EncoderError(
                f"{where} is of {manifest.name}@{manifest.revision}, not of {spec.name}@{spec.revision}: remove it and "
                "stage the weights again."
            )
        return manifest


def staged_prefix(spec: EncoderSpec) -> str:
    """Where the weights of a pinned repository lie in a store."""
    return f"{ENCODERS}/{spec.name}/{spec.revision}"


def encoders_store() -> Store | None:
    """The store that `ROBOIMI_ENCODERS` names, or None.

    Raises:
        StoreError: it cannot be opened.
    """
    uri = os.environ.get(STORE_VARIABLE)
    return open_store(uri) if uri else None


def find_staged(spec: EncoderSpec) -> tuple[Store, StagedManifest] | None:
    """Where `spec`'s weights are staged, and what is; None: it is no repository, or they are in no store.

    Raises:
        EncoderError: see `read_manifest`.
        StoreError: the store that `ROBOIMI_ENCODERS` names cannot be opened or read.
    """
    store = encoders_store() if spec.revision is not None else None
    manifest = read_manifest(store, spec) if store is not None else None
    return (store, manifest) if manifest is not None else None


def read_manifest(store: Store, spec: EncoderSpec) -> StagedManifest | None:
    """What is staged of `spec`'s repository, or None.

    Raises:
        EncoderError: the manifest was changed, or is of something else.
        StoreError: the store cannot be read.
    """
    prefix = staged_prefix(spec)
    document = store.committed(prefix, MANIFEST)
    if document is None:
        return None
    return StagedManifest.from_dict(document, spec, f"{store.uri}/{prefix}/{MANIFEST}")


def list_staged(store: Store) -> list[StagedManifest]:
    """Everything that is staged in a store, by name and revision.

    Raises:
        EncoderError: a manifest was changed.
        StoreError: the store cannot be read.
    """
    names = (f"{owner}/{name}" for owner in store.list(ENCODERS) for name in store.list(f"{ENCODERS}/{owner}"))
    texts = (f"{name}@{revision}" for name in names for revision in store.list(f"{ENCODERS}/{name}"))
    found = (read_manifest(store, EncoderSpec.parse(text)) for text in texts)
    return [manifest for manifest in found if manifest is not None]


def fetch_weights(store: Store, manifest: StagedManifest, spec: EncoderSpec) -> Path:
    """A folder that holds the staged files, every byte of them compared with the manifest.

    Raises:
        EncoderError: a file is missing or has other bytes.
        StoreError: the store cannot be read.
    """
    prefix = staged_prefix(spec)
    with ByteProgress("encoder", manifest.bytes) as counted:
        folder = store.fetch(prefix, manifest.files, counted)
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.bytes or sha256_file(path) != file.sha256:
            problem = "has other bytes than were staged" if path.is_file() else "is missing"
            raise EncoderError(f"{store.uri}/{prefix}/{name} {problem}: remove {prefix} and stage the weights again.")
    return folder


def stage_weights(store: Store, spec: EncoderSpec, folder: Path) -> StagedManifest:
    """Bring the files of a repository's commit into a store, or recognise that they are there.

    Args:
        store: where they shall be.
        spec: a pinned repository.
        folder: the files of that commit, as the hub gives them; what is not in `STAGED_FILES` stays.

    Raises:
        EncoderError: the folder holds no tower, a damaged file, or other bytes than are staged already.
        StoreError: the store cannot be written.
    """
    paths = _files_to_stage(folder)
    total = sum(path.stat().st_size for path in paths.values())
    found = {}
    with ByteProgress("hash", total) as counted:
        for name, path in paths.items():
            found[name] = StagedFile(path.stat().st_size, _checked_sha256(path))
            counted(found[name].bytes)
    manifest = StagedManifest(spec.name, spec.revision, found)
    prefix = staged_prefix(spec)
    staged = read_manifest(store, spec)
    if staged is None:
        with ByteProgress("stage", total) as counted:
            files = {f"{prefix}/{name}": path for name, path in paths.items()}
            store.send(files, {f"{prefix}/{name}": file.sha256 for name, file in found.items()}, counted)
        store.create(f"{prefix}/{MANIFEST}", manifest.to_dict())
        staged = read_manifest(store, spec)
    if staged != manifest:
        differing = sorted(name for name in {*found, *staged.files} if found.get(name) != staged.files.get(name))
        raise EncoderError(
            f"{store.uri}/{prefix} holds another {differing[0]} than {folder} (of {len(differing)} that differ): the "
            "files of a commit never change, so one of the two is not what it says; remove the wrong one."
        )
    return staged


def download(spec: EncoderSpec) -> Path:
    """The files of a repository's commit from the hub, or from its cache on this machine.

    Raises:
        EncoderError: they cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    # Its own lines about each of five attempts come twice, with a URL; what it gave up on is in the sentence below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=list(STAGED_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EncoderError(
            f"{spec.name}@{spec.revision} cannot be fetched from the Hugging Face hub "
            f"({str(error).strip().splitlines()[0]}): download that commit elsewhere and give its folder with --from."
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _files_to_stage(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise EncoderError(f"{folder} is no folder: give the one that holds {CONFIG} and the weights.")
    paths = {
        path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _STAGED_NAME.fullmatch(path.name)
    }
    if CONFIG not in paths:
        raise EncoderError(f"{folder} has no {CONFIG}: give the folder of one commit of the repository.")
    needed = {"model.safetensors"}
    if (index := paths.get("model.safetensors.index.json")) is not None:
        try:
            needed = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncoderError(f"{index} is no index of weights ({error!r}): download it again.") from error
    if lacking := sorted(needed - set(paths)):
        raise EncoderError(
            f"{folder} lacks {lacking[0]}, and only weights in safetensors are staged: choose a revision that has them."
        )
    return paths


def _checked_sha256(path: Path) -> str:
    """SHA-256 of a file; a large one in the hub's own cache lies under that name, which tells of a damaged copy."""
    digest, blob = sha256_file(path), path.resolve().name
    if _SHA256.fullmatch(blob) and blob != digest:
        raise EncoderError(f"{path} is damaged: the hub's cache names other bytes; remove it and download it again.")
    return digest


def _is_sound(item: tuple[str, StagedFile]) -> bool:
    name, file = item
    return bool(_STAGED_NAME.fullmatch(name)) and is_segment(name) and bool(_SHA256.fullmatch(file.sha256))

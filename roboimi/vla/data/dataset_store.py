"""Datasets in a store: pushed once, named by their content, fetched episode by episode as they are needed.

    <uri>/episodes/<sha256>.hdf5       an episode under the hash of its bytes; shared by all versions of the dataset
    <uri>/manifests/<digest>.json      a version; written last: without it, it is not there

`<uri>@sha256:<digest>` names a version for good. On this machine its episodes lie in the cache, under their own names:

    $ROBOIMI_CACHE/datasets/<digest>/MANIFEST.json, episode_000000.hdf5, ...
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from roboimi.errors import ConfigError, DataError
from roboimi.storage.atomic import durable_temporary, write_json_atomically, writing
from roboimi.storage.byte_progress import ByteProgress
from roboimi.storage.keys import sha256_file
from roboimi.storage.local_copies import cache_root
from roboimi.storage.store import Store, ignore, open_store
from roboimi.vla.data.manifest import MANIFEST_NAME, DatasetRef, EpisodeEntry, Manifest, read_manifest

EPISODES = "episodes"
MANIFESTS = "manifests"
HASHED_AT_ONCE = min(4, os.cpu_count() or 1)

_known_good: dict[Path, tuple[int, int, int]] = {}


def push_dataset(ref: DatasetRef, uri: str) -> str:
    """Bring a dataset into a store; a push that was cut short goes on with what is missing.

    Args:
        ref: a dataset in a folder.
        uri: a place of the store for this dataset and its later versions: `s3://bucket/datasets/cube`, or a folder.

    Returns:
        `URI@sha256:DIGEST`.

    Raises:
        DataError: an episode is not what the manifest says; nothing was committed.
        StoreError: the store cannot be written.
    """
    store = open_store(uri)
    ref.bring()
    total = sum(entry.bytes for entry in ref.manifest.episodes)
    with ByteProgress("hash", total) as counted, ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        for _ in pool.map(lambda entry: _check(ref.path(entry), entry, counted), ref.manifest.episodes):
            pass
    files = {_episode_key(entry): ref.path(entry) for entry in ref.manifest.episodes}
    digests = {_episode_key(entry): entry.sha256 for entry in ref.manifest.episodes}
    with ByteProgress("push", total) as counted:
        store.send(files, digests, counted)
    store.create(_manifest_key(ref.digest), ref.manifest.to_dict())
    return f"{_named(store)}@sha256:{ref.digest}"


def find_pushed(uri: str, digest: str) -> DatasetRef:
    """The version `digest` of the dataset at `uri`; its manifest is read and verified, no episode is fetched.

    Raises:
        DataError: there is no digest, no such version, or its manifest is damaged.
        StoreError: the store cannot be read.
    """
    if not digest:
        raise DataError(f"Dataset {uri} is in a store and named without its digest: give {uri}@sha256:<64 hex digits>.")
    root = cache_root() / "datasets" / digest
    store = open_store(uri)
    manifest = _local_manifest(root, digest)
    if manifest is None:
        document = store.read_json(_manifest_key(digest))
        if document is None:
            raise DataError(f"{store.uri} holds no dataset of the digest {digest[:12]}…: push it, or correct the URI.")
        manifest = Manifest.from_dict(document, f"{store.uri}/{_manifest_key(digest)}")
        if manifest.digest != digest:
            raise DataError(f"{store.uri}/{_manifest_key(digest)} is damaged: push the dataset again.")
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
        write_json_atomically(root / MANIFEST_NAME, document)
    return DatasetRef(root, manifest, digest, source=_named(store))


def bring_episodes(ref: DatasetRef, entries: Sequence[EpisodeEntry], *, show: bool = True) -> None:
    """Fetch episodes into `ref.root`, several at a time, and verify them; see `DatasetRef.bring`."""
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        here = list(pool.map(lambda entry: _is_here(ref.path(entry), entry), entries))
    missing = [entry for entry, is_here in zip(entries, here, strict=True) if not is_here]
    if not missing:
        return
    store = open_store(ref.source)
    total = sum(entry.bytes for entry in missing)
    with ByteProgress("fetch episodes", total) if show else contextlib.nullcontext(ignore) as counted:
        folder = store.fetch(EPISODES, [_episode_name(entry) for entry in missing], counted)
    for entry in missing:
        _check(folder / _episode_name(entry), entry)
        _place(folder / _episode_name(entry), ref.path(entry))


def pull_dataset(ref: DatasetRef, out: Path) -> DatasetRef:
    """Make a folder of a dataset in a store; a pull that was cut short goes on with what is missing.

    Args:
        ref: of a dataset in a store.
        out: a folder that is empty or not there, or that an earlier pull began.

    Raises:
        ConfigError: `out` is another dataset, or holds other things.
        DataError, StoreError: as in `DatasetRef.bring`.
    """
    out = out.expanduser().absolute()
    if (out / MANIFEST_NAME).exists() and read_manifest(out).digest != ref.digest:
        raise ConfigError(f"Folder {out} holds another dataset: name a folder that is not there yet.")
    expected = {MANIFEST_NAME, *(entry.file for entry in ref.manifest.episodes)}
    if not (out / MANIFEST_NAME).exists() and out.exists():
        others = [path.name for path in out.iterdir() if path.name not in expected and not path.name.startswith(".")]
        if others:
            raise ConfigError(f"Folder {out} holds other things ({min(others)}): name a folder that is not there yet.")
    ref.bring()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for entry in ref.manifest.episodes:
        if not (out / entry.file).is_file() or sha256_file(out / entry.file) != entry.sha256:
            _place(ref.path(entry), out / entry.file, link=False)
    write_json_atomically(out / MANIFEST_NAME, ref.manifest.to_dict())
    return DatasetRef(out, ref.manifest, ref.digest)


def verify_pushed(ref: DatasetRef) -> list[str]:
    """Read every episode of a dataset in a store anew, keeping nothing.

    Returns:
        A sentence for each episode that is missing or damaged.
    """
    store = open_store(ref.source)
    with ByteProgress("verify", sum(entry.bytes for entry in ref.manifest.episodes)) as counted:
        found = store.sha256([_episode_key(entry) for entry in ref.manifest.episodes], counted)
    problems = []
    for entry in ref.manifest.episodes:
        digest = found.get(_episode_key(entry))
        if digest != entry.sha256:
            problems.append(f"{entry.file} is {'missing' if digest is None else 'damaged'} in {store.uri}")
    return problems


def _check(path: Path, entry: EpisodeEntry, counted: Callable[[int], None] | None = None) -> None:
    try:
        digest = sha256_file(path)
    except FileNotFoundError as error:
        raise DataError(f"Episode {entry.file} is missing: restore it, or push the dataset again.") from error
    if digest != entry.sha256:
        raise DataError(
            f"Episode {path} has other bytes than its manifest says: restore it, or write the manifest again."
        )
    if counted is not None:
        counted(entry.bytes)


def _is_here(path: Path, entry: EpisodeEntry) -> bool:
    """Whether the episode is on this machine, byte for byte; hashed once a process for as long as it is not touched."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    identity = (status.st_ino, status.st_size, status.st_mtime_ns)
    if _known_good.get(path) != identity:
        if status.st_size != entry.bytes or sha256_file(path) != entry.sha256:
            return False
        _known_good[path] = identity
    return True


def _place(source: Path, target: Path, *, link: bool = True) -> None:
    """Give a file a second name, or a copy where the disk does not allow that or the copy is to be independent."""
    with writing(target), durable_temporary(target) as temporary:
        try:
            if not link:
                raise OSError
            temporary.unlink()
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)


def _local_manifest(root: Path, digest: str) -> Manifest | None:
    """The manifest that an earlier process fetched, if it is whole."""
    try:
        manifest = read_manifest(root)
    except DataError:
        return None
    return manifest if manifest.digest == digest else None


def _named(store: Store) -> str:
    """The store's URI, always with a scheme."""
    return store.uri if "://" in store.uri else f"file://{store.uri}"


def _episode_name(entry: EpisodeEntry) -> str:
    return f"{entry.sha256}.hdf5"


def _episode_key(entry: EpisodeEntry) -> str:
    return f"{EPISODES}/{_episode_name(entry)}"


def _manifest_key(digest: str) -> str:
    return f"{MANIFESTS}/{digest}.json"

"""Checks of the dataset as a whole: its split, and what else lies in its folder."""

from collections.abc import Iterator

from roboimi.storage.atomic import TEMPORARY_PREFIX
from roboimi.vla.data.manifest import MANIFEST_NAME, RECIPE_NAME, DatasetRef
from roboimi.vla.data.validate.check import NotApplicable, Problem, Stage, check
from roboimi.vla.data.validate.limits import Limits

VALIDATION_NAME = "VALIDATION.json"
FINDINGS_NAME = "findings.jsonl"
PAGE_NAME = "validation.html"
OWN_FILES = frozenset({MANIFEST_NAME, VALIDATION_NAME, FINDINGS_NAME, PAGE_NAME, RECIPE_NAME})

_EPISODE_SUFFIXES = {".hdf5", ".h5"}


@check("E29-split", Stage.DATASET)
def split(ref: DatasetRef, limits: Limits) -> Iterator[Problem]:
    """Every episode is in exactly one part of the split, and there is something to train on."""
    manifest = ref.manifest
    again = "write the manifest again with each episode in one part"
    listed = [entry.file for entry in manifest.episodes]
    parts = [file for files in manifest.split.values() for file in files]
    if not manifest.split["train"]:
        yield Problem("the train split is empty", "write the manifest again with at least one training episode")
    for file in sorted({file for file in listed if listed.count(file) > 1}):
        yield Problem("the manifest lists it twice", again, episode=file)
    for file in sorted({file for file in parts if parts.count(file) > 1}):
        yield Problem("it is in the split more than once", again, episode=file)
    for file in sorted(set(parts) - set(listed)):
        yield Problem("the split names it and the manifest does not list it", again, episode=file)
    for file in sorted(set(listed) - set(parts)):
        yield Problem("it is in no part of the split", again, episode=file)


@check("W29-no-validation-split", Stage.DATASET)
def validation_split(ref: DatasetRef, limits: Limits) -> Iterator[Problem]:
    """Some episodes are held out."""
    if not ref.manifest.split["validation"]:
        yield Problem("no episode is held out", "hold some out to see a policy that only memorises")


@check("E07-contract", Stage.DATASET)
def contract(ref: DatasetRef, limits: Limits) -> Iterator[Problem]:
    """The dataset's contract is the one that was asked for."""
    if not limits.contract:
        raise NotApplicable("no contract was asked for")
    has = ref.contract.to_dict()
    for name, wanted in sorted(limits.contract.items()):
        if has.get(name) != wanted:
            what = f"the dataset has {name} {has.get(name)}, not {wanted} as asked for"
            yield Problem(what, "take another dataset, or correct the contract that is asked for", dimension=name)


@check("E29-same-bytes", Stage.DATASET)
def same_bytes(ref: DatasetRef, limits: Limits) -> Iterator[Problem]:
    """No two episodes have the same content: a copy in the other part of the split is leakage."""
    first: dict[str, str] = {}
    for entry in ref.manifest.episodes:
        other = first.setdefault(entry.sha256, entry.file)
        if other != entry.file:
            yield Problem(f"it is a copy of {other}", "drop one of them", episode=entry.file)


@check("E03-unlisted-episode", Stage.DATASET)
def unlisted_episode(ref: DatasetRef, limits: Limits) -> Iterator[Problem]:
    """No HDF5 file lies in the folder that the manifest does not list."""
    listed = {entry.file for entry in ref.manifest.episodes}
    for path in sorted(ref.root.iterdir()):
        if path.suffix in _EPISODE_SUFFIXES and path.name not in listed:
            yield Problem("the manifest does not list it", "remove it, or write the manifest again", episode=path.name)


@check("W03-other-file", Stage.DATASET)
def other_file(ref: DatasetRef, limits: Limits) -> Iterator[Problem]:
    """Nothing else lies in the folder."""
    for path in sorted(ref.root.iterdir()):
        if path.suffix in _EPISODE_SUFFIXES or path.name in OWN_FILES:
            continue
        unfinished = path.name.startswith(TEMPORARY_PREFIX)
        what = "a writer that was killed left it behind" if unfinished else "it is no part of a dataset"
        yield Problem(what, "remove it", episode=path.name)

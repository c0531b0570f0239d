"""LeRobot datasets from the Hugging Face hub: found by id, pinned to a commit, downloaded into the hub's own cache."""

import re
from pathlib import Path
from typing import Any

from roboimi.errors import ConfigError, StoreError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PARTS = ["meta/**", "data/**", "videos/**"]


def locate(text: str, revision: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder of a dataset given as a local path or as a hub id, and its origin for the manifest.

    Args:
        text: a folder, or `owner/name` on the hub.
        revision: a commit, tag or branch of the hub; required there, meaningless for a folder.

    Raises:
        ConfigError: it is neither a folder nor a hub id, or the revision is missing or one too many.
        StoreError: the hub cannot be reached, or has no such dataset.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"{folder} is a folder on this machine, which has no revision: leave out --revision.")
        return folder, {}
    if not _HUB_ID.fullmatch(text):
        raise ConfigError(f"{text} is neither a folder nor a dataset id OWNER/NAME of the hub: correct the path.")
    if revision is None:
        raise ConfigError(
            f"{text} is no folder, and as a dataset of the hub it needs a revision, so that the same command gives the "
            "same data again: add --revision COMMIT (or a tag, v3.0)."
        )
    return _download(text, revision)


def _download(repo: str, revision: str) -> tuple[Path, dict[str, Any]]:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f"{repo} is no folder, and the package huggingface_hub, which fetches datasets from the hub, is not "
            "installed: pip install huggingface_hub, or give a folder with the dataset."
        ) from error
    try:
        commit = huggingface_hub.HfApi().dataset_info(repo, revision=revision, timeout=20).sha
        folder = huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=PARTS)
    except Exception as error:  # the hub's client lets through whatever its HTTP library raises, and changes that
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StoreError(
            f"The dataset {repo}@{revision} cannot be fetched from the Hugging Face hub ({reason}): run again where "
            f"the hub can be reached (HF_ENDPOINT names a mirror), or download it elsewhere with `hf download {repo} "
            f"--repo-type dataset --revision {revision} --local-dir FOLDER` and give that folder."
        ) from error
    return Path(folder), {"hub": repo, "revision": commit}

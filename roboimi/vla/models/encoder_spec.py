"""What names a frozen vision tower, and the digest that stands for it in keys. Needs no torch.

standin                                              the tiny SigLIP tower of this project
google/siglip2-base-patch16-256@<40-hex revision>    a Hugging Face repository, pinned
/path/to/folder, ./folder                            a folder that `from_pretrained` can read
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from roboimi.errors import EncoderError
from roboimi.storage.keys import sha256_file, sha256_json

STANDIN_NAME = "standin"

STANDIN_DIR = Path(__file__).parent / "standin"
"""Weights of the stand-in: part of this package."""

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>.*))?")


@dataclass(frozen=True)
class EncoderSpec:
    """A frozen vision tower.

    Attributes:
        name: `standin`, a repository, or a folder.
        revision: commit of a repository, 40 hex digits; None for the others.
        folder: where the weights lie; None for a repository.
        digest: hex SHA-256 that changes with the weights.
        description: for the first line of a report.
    """

    name: str
    revision: str | None
    folder: Path | None
    digest: str
    description: str

    @property
    def is_standin(self) -> bool:
        """Whether this is the project's own tiny tower, which is never called SigLIP2."""
        return self.name == STANDIN_NAME

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name as in the module's docstring.

        Raises:
            EncoderError: no such folder, no revision, or none of the three forms.
        """
        if text == STANDIN_NAME:
            return cls._standin()
        if text.startswith((".", "/", "~")) or (text and Path(text).is_dir()):
            return cls._local(Path(text).expanduser())
        match = _HUB.fullmatch(text)
        if match is None:
            raise EncoderError(
                f"Unknown encoder {text!r}: give {STANDIN_NAME!r}, a folder with the weights, "
                "or REPOSITORY@REVISION of a Hugging Face repository."
            )
        name, revision = match["name"], match["revision"]
        if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise EncoderError(
                f"The encoder {text!r} is not pinned: write {name}@REVISION with the 40 hex digits of the commit, "
                "so that a later run uses the same weights."
            )
        digest = sha256_json({"name": name, "revision": revision})
        return cls(name, revision, None, digest, f"{name} at revision {revision[:12]}")

    @classmethod
    def _standin(cls) -> Self:
        digest = folder_digest(STANDIN_DIR)
        description = "stand-in (tiny SigLIP tower, trained on renders of this task alone)"
        return cls(STANDIN_NAME, None, STANDIN_DIR, digest, description)

    @classmethod
    def _local(cls, folder: Path) -> Self:
        if not (folder / "config.json").is_file():
            raise EncoderError(
                f"No encoder in {folder}: it has no config.json; give a folder written by save_pretrained, "
                f"or {STANDIN_NAME!r}."
            )
        folder = folder.resolve()
        return cls(str(folder), None, folder, folder_digest(folder), f"local folder {folder}")


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of the files below `folder`, hidden files and Markdown left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".md")
    names = ((path.relative_to(folder), path) for path in files)
    visible = {str(name): sha256_file(path) for name, path in names if not any(p.startswith(".") for p in name.parts)}
    return sha256_json(visible)

"""What a check says when something is wrong."""

import dataclasses
import unicodedata
from typing import Any, Literal, Self

Severity = Literal["ERR", "WARN"]

MOST_TEXT = 400
"""Characters of one field of a finding; the rest is cut."""


def printable(text: str) -> str:
    """`text` on one line and without power over a terminal or its reader.

    Names come out of files of unknown origin: line breaks would forge log lines, escape sequences colour or hide text,
    and direction marks make a name read as another one. Such characters are shown as their code.
    """
    if len(text) > MOST_TEXT:
        text = f"{text[: MOST_TEXT - 1]}…"
    return "".join(char if is_printable(char) else f"\\u{{{ord(char):x}}}" for char in text)


def is_printable(char: str) -> bool:
    """Whether a character is neither a control, a format or direction mark, a surrogate, nor a line break."""
    return char == " " or unicodedata.category(char)[0] not in "CZ"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where it is, and what to do about it.

    Attributes:
        code: of the check that found it, such as `E02-content-hash`.
        severity: `ERR` stops a campaign, `WARN` is reported.
        what: one clause that says what is wrong.
        what_to_do: one clause that says what helps.
        episode: file name, or None where the dataset as a whole is concerned.
        frames: first and last row concerned (both inclusive), or None for all.
        dimension: name of the array, of its dimension or of the camera, or None.
    """

    code: str
    severity: Severity
    what: str
    what_to_do: str
    episode: str | None = None
    frames: tuple[int, int] | None = None
    dimension: str | None = None

    def __post_init__(self):
        for name in ("code", "what", "what_to_do", "episode", "dimension"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, printable(str(value)))

    @property
    def where(self) -> str:
        """The place of the finding: episode, frames, dimension."""
        where = self.episode or "dataset"
        if self.frames is not None:
            where += f", {self.frames_text}"
        return where if self.dimension is None else f"{where}, {self.dimension}"

    @property
    def frames_text(self) -> str:
        """`frame 4`, `frames 4 to 9`, or nothing."""
        if self.frames is None:
            return ""
        first, last = self.frames
        return f"frame {first}" if first == last else f"frames {first} to {last}"

    @property
    def sentence(self) -> str:
        """The finding for people: where, what, what to do."""
        return f"{self.severity} {self.code} {self.where}: {self.what}; {self.what_to_do}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "frames": list(self.frames) if self.frames else None}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError, TypeError, KeyError: the document is no finding.
        """
        frames = document["frames"]
        if frames is not None:
            first, last = frames
            frames = (int(first), int(last))
        if document["severity"] not in ("ERR", "WARN"):
            raise ValueError(f"unknown severity {document['severity']!r}")
        return cls(**{**document, "frames": frames})

"""What a check says when something is wrong."""

import dataclasses
from typing import Any, Literal, Self

Severity = Literal["ERR", "WARN"]


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
        dimension: name of the array, or of its dimension, or None.
    """

    code: str
    severity: Severity
    what: str
    what_to_do: str
    episode: str | None = None
    frames: tuple[int, int] | None = None
    dimension: str | None = None

    @property
    def sentence(self) -> str:
        """The finding for people: where, what, what to do."""
        where = self.episode or "dataset"
        if self.frames is not None:
            first, last = self.frames
            where += f", frame {first}" if first == last else f", frames {first} to {last}"
        if self.dimension is not None:
            where += f", {self.dimension}"
        return f"{self.severity} {self.code} {where}: {self.what}; {self.what_to_do}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "frames": list(self.frames) if self.frames else None}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**document, "frames": tuple(document["frames"]) if document["frames"] else None})

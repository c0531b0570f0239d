"""What a check is.

A check is a generator of problems. To add one: write the function in a module of checks, decorate it with its code and
stage, and add a test that plants the fault and looks for the code.

    @check("E09-finite", Stage.VALUES)
    def finite(episode: EpisodeView, limits: Limits) -> Iterator[Problem]: ...

Codes are `E` or `W` for the severity, a two-digit number for the kind of fault, and a name. A check whose field the
data lacks raises `NotApplicable` with the reason.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from roboimi.errors import DataError
from roboimi.vla.data.hdf5 import first_line
from roboimi.vla.data.validate.finding import Finding, Severity
from roboimi.vla.data.validate.limits import Limits


class Stage(enum.IntEnum):
    """When a check runs, and on what.

    DATASET looks at the manifest and the folder, ACROSS at the summaries of all episodes, the others at one episode.
    An error in OPEN or STRUCTURE ends the checks of that episode after the stage.
    """

    DATASET = 0
    CONTENT = 1
    OPEN = 2
    STRUCTURE = 3
    VALUES = 4
    ACROSS = 5


EPISODE_STAGES = (Stage.CONTENT, Stage.OPEN, Stage.STRUCTURE, Stage.VALUES)
GATES = frozenset({Stage.OPEN, Stage.STRUCTURE})

DAMAGE = (DataError, OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError)
"""What reading a damaged HDF5 file raises."""


class NotApplicable(Exception):
    """The data lacks what the check looks at; the message says what."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A finding before it knows its code, severity and episode; see `Finding` for the fields."""

    what: str
    what_to_do: str
    frames: tuple[int, int] | None = None
    dimension: str | None = None
    episode: str | None = None


class Outcome(NamedTuple):
    """What one check found; `not_applicable` says why it could not look."""

    findings: tuple[Finding, ...]
    not_applicable: str | None = None


CheckFunction = Callable[[Any, Limits], Iterator[Problem]]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check: a function under its code.

    Attributes:
        code: its name in findings.
        stage: when it runs.
        function: of a `DatasetRef`, an `EpisodeView` or `Summaries`, by the stage.
    """

    code: str
    stage: Stage
    function: CheckFunction

    @property
    def severity(self) -> Severity:
        """From the code's first letter."""
        return "ERR" if self.code.startswith("E") else "WARN"

    @property
    def title(self) -> str:
        """What holds where the check finds nothing, in one sentence."""
        return (self.function.__doc__ or self.code).strip().splitlines()[0]

    def run(self, subject: Any, limits: Limits) -> Outcome:
        """Run the check; an episode too damaged for it is a finding as well."""
        default = getattr(getattr(subject, "entry", None), "file", None)
        findings = []
        try:
            for problem in self._problems(subject, limits):
                fields = {**dataclasses.asdict(problem), "episode": problem.episode or default}
                findings.append(Finding(code=self.code, severity=self.severity, **fields))
        except NotApplicable as reason:
            return Outcome(tuple(findings), str(reason))
        return Outcome(tuple(findings))

    def _problems(self, subject: Any, limits: Limits) -> Iterator[Problem]:
        if self.stage not in EPISODE_STAGES:
            yield from self.function(subject, limits)
            return
        try:
            yield from self.function(subject, limits)
        except DAMAGE as error:
            what = f"the file is too damaged for this check ({first_line(error)})"
            yield Problem(what, "restore the file from where it came, or drop it")


def check(code: str, stage: Stage) -> Callable[[CheckFunction], Check]:
    """Make a check of a function; the stage says what it is given."""

    def make(function: CheckFunction) -> Check:
        return Check(code, stage, function)

    return make

"""What a check is, and what it gets to see.

A check is a generator of problems. To add one: write the function in a module of checks, decorate it with its code and
stage, and add a test that plants the fault and looks for the code.

    @check("E09-finite", Stage.VALUES)
    def finite(episode: EpisodeView, limits: Limits) -> Iterator[Problem]: ...

Codes are `E` or `W` for the severity, a two-digit number for the kind of fault, and a name.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from roboimi.errors import DataError
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import TIMESTAMP, VELOCITY, expected_shapes
from roboimi.vla.data.hdf5 import Foreign, first_line, open_file, walk
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.validate.finding import Finding, Severity


class Stage(enum.IntEnum):
    """When a check runs. An error in OPEN or STRUCTURE ends the checks of that episode after the stage."""

    DATASET = 0
    CONTENT = 1
    OPEN = 2
    STRUCTURE = 3
    VALUES = 4


GATES = frozenset({Stage.OPEN, Stage.STRUCTURE})

DAMAGE = (DataError, OSError, RuntimeError, LookupError, ValueError)
"""What reading a damaged HDF5 file raises."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the checks measure against, beyond the contract.

    Attributes:
        min_frames: fewest rows of a usable episode; a chunk of 16 actions needs as many.
        max_abs_action: beyond this an action is no joint target in any unit, but a fault of the recording.
        action_low: A lowest actions, in the units of the data; None: unknown.
        action_high: A highest actions, in the units of the data; None: unknown.
    """

    min_frames: int = 16
    max_abs_action: float = 1e4
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A finding before it knows its code, severity and episode; see `Finding` for the fields."""

    what: str
    what_to_do: str
    frames: tuple[int, int] | None = None
    dimension: str | None = None
    episode: str | None = None


class EpisodeView:
    """One episode as the checks see it; opened on first use, read array by array, closed by `close`."""

    def __init__(self, ref: DatasetRef, entry: EpisodeEntry):
        self.ref, self.entry = ref, entry
        self.path: Path = ref.path(entry)
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def contract(self) -> DatasetContract:
        """The dataset's contract."""
        return self.ref.contract

    @cached_property
    def file(self) -> h5py.File:
        """The open file.

        Raises:
            DataError: it cannot be opened.
        """
        return open_file(self.path)

    @cached_property
    def objects(self) -> dict[str, h5py.Dataset | Foreign]:
        """Everything in the file by path."""
        return dict(walk(self.file))

    @cached_property
    def datasets(self) -> dict[str, h5py.Dataset]:
        """The arrays in the file by path, those kept elsewhere left out."""
        return {name: item for name, item in self.objects.items() if isinstance(item, h5py.Dataset)}

    @property
    def required(self) -> list[str]:
        """The arrays that every episode of this dataset must have: those of the contract and those of the layout."""
        layout = self.ref.manifest.layout.get("arrays", ())
        return sorted({*layout, *(expected_shapes(self.contract).keys() - {VELOCITY, TIMESTAMP})})

    def array(self, name: str) -> np.ndarray:
        """A small array, whole; read once.

        Raises:
            OSError, RuntimeError: its bytes are damaged.
        """
        if name not in self._arrays:
            self._arrays[name] = self.datasets[name][()]
        return self._arrays[name]

    def close(self) -> None:
        """Let go of the file."""
        if "file" in self.__dict__:
            self.file.close()


DatasetFunction = Callable[[DatasetRef, Limits], Iterator[Problem]]
EpisodeFunction = Callable[[EpisodeView, Limits], Iterator[Problem]]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check: a function under its code.

    Attributes:
        code: its name in findings.
        stage: when it runs.
        function: of the dataset or of one episode, by the stage.
    """

    code: str
    stage: Stage
    function: DatasetFunction | EpisodeFunction

    @property
    def severity(self) -> Severity:
        """From the code's first letter."""
        return "ERR" if self.code.startswith("E") else "WARN"

    def findings(self, subject: Any, limits: Limits) -> Iterator[Finding]:
        """Run the check on a dataset or an episode; a file too damaged for the check is a finding as well."""
        default = subject.entry.file if isinstance(subject, EpisodeView) else None
        for problem in self._problems(subject, limits):
            fields = {**dataclasses.asdict(problem), "episode": problem.episode or default}
            yield Finding(code=self.code, severity=self.severity, **fields)

    def _problems(self, subject: Any, limits: Limits) -> Iterator[Problem]:
        if not isinstance(subject, EpisodeView):
            yield from self.function(subject, limits)
            return
        try:
            yield from self.function(subject, limits)
        except DAMAGE as error:
            what = f"the file is too damaged for this check ({first_line(error)})"
            yield Problem(what, "restore the file from where it came, or drop it")


def check(code: str, stage: Stage) -> Callable[[DatasetFunction | EpisodeFunction], Check]:
    """Make a check of a function: of the dataset with `Stage.DATASET`, of one episode with the others."""

    def make(function: DatasetFunction | EpisodeFunction) -> Check:
        return Check(code, stage, function)

    return make

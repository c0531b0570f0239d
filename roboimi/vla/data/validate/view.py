"""One episode as the checks see it: opened on first use, its small arrays read once, its images streamed once."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import (
    ACTION,
    ENVIRONMENT_STATE,
    STATE,
    TIMESTAMP,
    VELOCITY,
    expected_shapes,
    image_name,
)
from roboimi.vla.data.hdf5 import Foreign, open_file, read_attribute, walk
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.validate.check import NotApplicable
from roboimi.vla.data.validate.pictures import CameraFacts, watch

LOW_DIM = (ACTION, STATE, VELOCITY, TIMESTAMP, ENVIRONMENT_STATE)


class EpisodeView:
    """One episode of a dataset.

    Attributes:
        ref: the dataset.
        entry: what the manifest says of the episode.
        path: where it lies.
        beat: called while images are read, so that whoever waits sees that work goes on.
    """

    def __init__(self, ref: DatasetRef, entry: EpisodeEntry, beat: Callable[[], None] = lambda: None):
        self.ref, self.entry, self.beat = ref, entry, beat
        self.path: Path = ref.path(entry)
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def contract(self) -> DatasetContract:
        """The dataset's contract."""
        return self.ref.contract

    @property
    def is_plain_file(self) -> bool:
        """Whether there is a file, and neither a link nor something that is read from without end."""
        return not self.path.is_symlink() and self.path.is_file()

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

    @property
    def known(self) -> dict[str, tuple[int, ...]]:
        """The arrays of the contract that the episode has, with the shape of one row."""
        return {name: row for name, row in expected_shapes(self.contract).items() if name in self.datasets}

    def attribute(self, name: str) -> Any:
        """An attribute of the file as a Python value; None where there is none."""
        return read_attribute(self.file, name)

    def array(self, name: str) -> np.ndarray:
        """A small array, whole; read once.

        Raises:
            OSError, RuntimeError: its bytes are damaged.
        """
        if name not in self._arrays:
            self._arrays[name] = self.datasets[name][()]
        return self._arrays[name]

    def low_dim(self) -> Iterator[tuple[str, np.ndarray]]:
        """The readable small arrays by name, as (T, n); a damaged one is the business of E01-damaged-data."""
        for name in LOW_DIM:
            if name in self.known:
                try:
                    values = self.array(name)
                except (OSError, RuntimeError):
                    continue
                yield name, values[:, None] if values.ndim == 1 else values

    def finite(self, name: str) -> np.ndarray:
        """A small array as float64, (T, n) or (T,).

        Raises:
            NotApplicable: it is not there, cannot be read, or holds values that are not finite.
        """
        if name not in self.known:
            raise NotApplicable(f"there is no /{name}")
        try:
            values = self.array(name).astype(np.float64)
        except (OSError, RuntimeError) as error:
            raise NotApplicable(f"/{name} is damaged") from error
        if not np.isfinite(values).all():
            raise NotApplicable(f"/{name} holds values that are not finite")
        return values

    @cached_property
    def cameras(self) -> dict[str, CameraFacts]:
        """What every camera of the contract showed, from one pass over its images."""
        return {
            camera: watch(self.datasets[image_name(camera)], self.beat)
            for camera in self.contract.cameras
            if image_name(camera) in self.datasets
        }

    def close(self) -> None:
        """Let go of the file."""
        if "file" in self.__dict__:
            self.file.close()

"""Writing HDF5 files so that a full disk is an error and not the end of the process.

HDF5 writes much of a file while it is being closed, and crashes (a segmentation fault in 1.14) where that fails. So its
writes go through an object that keeps the first error of the operating system to itself, takes everything after it
without writing, and lets the error out once HDF5 has let go of the file.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py


class HDF5Writer:
    """A new file under `path`, as a context: `with HDF5Writer(path) as writer: writer.file["a"] = 1`.

    Raises:
        OSError: on leaving the context, or from `check`, when a write had failed.
    """

    def __init__(self, path: Path):
        self._path = path
        self._sink: _Sink | None = None
        self.file: h5py.File | None = None

    def check(self) -> None:
        """Raise the error of an earlier write, if there was one; worth a call now and then in a long loop."""
        if self._sink.error is not None:
            raise self._sink.error

    def __enter__(self) -> Self:
        self._sink = _Sink(self._path)
        self.file = h5py.File(self._sink, "w", libver="latest")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.file.close()
        finally:
            self._sink.close()
        # A full disk is the reason of whatever HDF5 complained about afterwards.
        if self._sink.error is not None and (error is None or isinstance(error, OSError | RuntimeError)):
            raise self._sink.error from error


class _Sink:
    """The file as HDF5 sees it: all that `h5py` asks of a Python file object."""

    def __init__(self, path: Path):
        self.error: OSError | None = None
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._position = 0
        self._end = 0

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self._handle, view[done:], self._position + done)
            except OSError as error:
                self.error = error
        self._position += len(view)
        self._end = max(self._end, self._position)
        return len(view)

    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self._handle, len(view), self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._handle, self._end)
            except OSError as error:
                self.error = error
        return self._end

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._handle)

"""Where torch computes, and with how many threads."""

import contextlib
from collections.abc import Iterator

import torch

from roboimi.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ConfigError: `cuda` without a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda, but this machine gives no CUDA device: set train.device=auto or cpu.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Within the block torch computes with `count` threads; 0: as many as it chooses, which is all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

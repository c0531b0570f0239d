"""The global random generators of a process as tensors, and the seed of each training step.

A step draws its noise and times from a generator seeded by (seed, step) alone, so nothing there depends on history. The
global generators are saved as well: whatever draws from them (dropout, a library) goes on where it stopped.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_CUDA = "torch_cuda."


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one training; neighbours share nothing."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def capture_rng() -> dict[str, Tensor]:
    """State of the generators of Python, NumPy, torch and each CUDA device, as integer tensors and one float."""
    version, words, python_gauss = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state()
    # NaN stands for "no second normal number waiting", which Python writes as None.
    waiting = [float("nan") if python_gauss is None else python_gauss, gauss]
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "gauss": torch.tensor(waiting, dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state |= {f"{_CUDA}{index}": cuda_state for index, cuda_state in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_rng(state: Mapping[str, Tensor]) -> None:
    """Put all generators back to a captured state; CUDA devices that this machine lacks are passed over."""
    version, *words = state["python"].tolist()
    python_gauss, gauss = state["gauss"].tolist()
    random.setstate((version, tuple(words), None if python_gauss != python_gauss else python_gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"{_CUDA}{index}" in state:
                torch.cuda.set_rng_state(state[f"{_CUDA}{index}"], index)


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Whatever the block draws from the global generators, after it they are as they were before."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)

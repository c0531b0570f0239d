"""What a process that parses files of unknown origin may have: little memory, time and nothing of the user's.

HDF5 is a large C library with a long list of memory errors. A process of its own reads the files: its environment holds
no credentials, it cannot write, it cannot grow beyond its memory, and when it dies, that is a finding about a file.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

MEMORY_BYTES = 2 * 2**30
"""Address space of a parsing process."""

MOST_OPEN_FILES = 64

_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "COVERAGE_PROCESS_START")
_NOWHERE = "/nonexistent"
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def clean_environment(package_root: Path) -> dict[str, str]:
    """The environment of a parsing process: no credentials, no HDF5 plug-ins, one thread, no bytecode written.

    Args:
        package_root: the folder that `roboimi` is imported from.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "PYTHONPATH": str(package_root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": _NOWHERE,
        "HDF5_PLUGIN_PRELOAD": "::",
        # For a file that it does not know, HDF5 looks for connectors in its plug-in folders even so.
        "HDF5_PLUGIN_PATH": _NOWHERE,
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def lock_down(memory_bytes: int = MEMORY_BYTES) -> None:
    """Give up what parsing does not need; for good, in this process."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def allow_cpu(seconds: float) -> None:
    """Let this process compute for that many seconds more; beyond, the kernel ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    value = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (value, hard))

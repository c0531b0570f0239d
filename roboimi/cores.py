"""How many cores this process may use: a container's share of a large node, not the node's."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that the process may run on, and no more than its control group gets time of.

    A limit of CPU does not hide cores from a process: one that starts a thread for each of them is stopped for most of
    every period. The limit is `cpu.max` of cgroup v2, or `cpu.cfs_quota_us` of v1.

    Args:
        cgroup: where the process's control group is mounted, as containers have it.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time; None where there is no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        if all((cgroup / name).is_file() for name in names):
            quota, period = " ".join((cgroup / name).read_text().strip() for name in names).split()
            return None if quota in {"max", "-1"} else int(quota) / int(period)
    return None

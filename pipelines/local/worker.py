"""The process that runs a campaign's DAG with kfp.local: `python -m pipelines.local.worker REQUEST.json`.

kfp.local prints, logs, warns and replaces `builtins.print` while it works. In a process of its own all of that goes to
the campaign's log, and the process that the user sees keeps its terminal and its signals.
"""

import ctypes
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.arms import Arm
from pipelines.local.request import DOCKER, LocalRequest
from pipelines.profiles import load_profile
from roboimi.campaign_step import PARENT_VARIABLE

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the campaign that the request file describes; 0 when every step succeeded."""
    request = LocalRequest.read(Path(sys.argv[1]))
    die_with(request.owner_pid)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    return run(request)


def run(request: LocalRequest) -> int:
    """Build the pipeline and run it, in subprocesses of this one or in containers."""
    from kfp import local

    from pipelines.campaign import build_campaign

    # kfp replaces the text `python3` in every argument, paths of the user's included, by `sys.executable`, and a shell
    # then splits that at spaces. With this name both come to nothing; the PATH leads to this same Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    sys.executable = "python3"
    profile = replace(load_profile(request.profile), job_id=request.job_id)
    arms = [Arm(name=item["arm"], overrides=tuple(item["overrides"])) for item in request.arguments["experiments"]]
    local.init(
        runner=_runner(request),
        pipeline_root=request.pipeline_root,
        workspace_root=request.workspace_root,
        raise_on_error=True,
    )
    try:
        build_campaign(profile, arms)(**request.arguments)
    except RuntimeError as error:
        # How kfp.local says that a task failed; which one and why is in the launch records.
        print(f"error: {error}", flush=True)
        return 1
    return 0


def _runner(request: LocalRequest) -> Any:
    if request.runner == DOCKER:
        from pipelines.local.docker_runner import make_runner

        return make_runner(request)
    from kfp import local

    return local.SubprocessRunner(use_venv=False)


def die_with(owner: int) -> None:
    """Have the kernel kill this process when its parent, the process `owner`, ends in whatever way."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())

"""What the command line hands to the process that runs a local campaign."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

SUBPROCESS, DOCKER = "subprocess", "docker"
RUNNERS = (SUBPROCESS, DOCKER)
"""How a step runs: as a process of this machine's Python, or in its image."""


@dataclass(frozen=True)
class LocalRequest:
    """One local campaign.

    Attributes:
        profile: name of the profile.
        job_id: the campaign's run id.
        arguments: of the pipeline function.
        pipeline_root: where kfp.local keeps the small artifacts that pass between steps.
        workspace_root: a fresh folder that is nobody's: kfp.local removes it, with all that is in it, after every run.
        owner_pid: the process that shows the campaign to the user.
        runner: one of `RUNNERS`.
    """

    profile: str
    job_id: str
    arguments: dict[str, Any]
    pipeline_root: str
    workspace_root: str
    owner_pid: int
    runner: str = SUBPROCESS

    def write(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))

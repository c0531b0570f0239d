"""Compile the campaign to the intermediate representation that Kubeflow Pipelines takes, the same bytes every time."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.arms import Arm
from pipelines.profiles import Profile
from roboimi.errors import ConfigError


def compile_campaign(profile: Profile, output: Path, arms: Sequence[Arm] | None = None) -> Path:
    """Write the compiled pipeline.

    Args:
        profile: what to compile for.
        output: a `.yaml` file; its folder is made.
        arms: default of the parameter `experiments`; None: the profile's own.

    Raises:
        ConfigError: the file has another ending, or cannot be written.
    """
    from kfp import compiler

    from pipelines.campaign import build_campaign

    if output.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"The compiled pipeline {output} must be called something.yaml: change -o.")
    pipeline = build_campaign(profile, arms)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "campaign.yaml"
        compiler.Compiler().compile(pipeline, str(raw))
        text = stable(raw.read_text(), profile.name)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"The compiled pipeline {output} cannot be written ({error.strerror}): change -o.") from error
    return output


def stable(text: str, profile: str) -> str:
    """The compiled text without the compiler's own comment.

    That comment shows the default of a list of dicts with their keys in an order that differs from run to run.
    """
    lines = text.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return f"# roboimi campaign, profile {profile}: python -m pipelines compile\n" + "".join(lines[first:])

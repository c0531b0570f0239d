"""The hook that runs before a pod's SIGTERM ends the step's Python in time, and nothing else: real processes."""

import shutil
import subprocess
import sys
import textwrap

import pytest
import yaml
from manifests.kustomize import MANIFESTS

IN_ITS_OWN = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
"""A process namespace as a container has it, where the hook sees the processes of one step and no others."""


@pytest.fixture(scope="module")
def hook():
    """The command of the overlay's preStop."""
    config = yaml.safe_load((MANIFESTS / "overlays/argo-retry/workflow-defaults.yaml").read_text())
    defaults = yaml.safe_load(config["data"]["workflowDefaults"])["spec"]
    (container,) = yaml.safe_load(defaults["podSpecPatch"])["containers"]
    return container["lifecycle"]["preStop"]["exec"]["command"]


@pytest.fixture
def container(tmp_path):
    """Runs a script in a process namespace that holds what a step's pod holds: launcher, shell, Python."""
    if (
        not shutil.which("unshare")
        or subprocess.run([*IN_ITS_OWN, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine lets no unprivileged process have a namespace of its own")
    folder = tmp_path / "kfp/dsl"
    folder.mkdir(parents=True)
    (folder / "executor_main.py").write_text(STEP)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "python3").symlink_to(sys.executable)

    def run(script, *arguments):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "PYTHONHOME": sys.base_prefix}
        command = [*IN_ITS_OWN, "sh", "-c", textwrap.dedent(script), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment, check=False
        )

    return run


STEP = """
import os, signal, sys, time
def commit(*_):
    time.sleep(0.3)
    open("committed", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, commit)
open("ready", "w").close()
signal.pause()
"""

LAUNCHER = """
import subprocess, sys
# The shell's command line holds the step's, on a line of its own, as Kubeflow Pipelines writes it.
code = subprocess.call(["sh", "-ec", "x=$(mktemp -d)\\npython3 -m kfp.dsl.executor_main --component_module_path $x"])
open("launcher", "w").write(str(code))
"""


def test_the_step_commits_and_everything_above_it_ends_by_itself(container, hook, tmp_path):
    done = container(
        """
        python3 launcher.py -- sh -ec 'python3 -m kfp.dsl.executor_main' &
        while [ ! -e ready ]; do sleep 0.01; done
        "$@"
        [ -e committed ] && echo "committed before the hook was over"
        wait
        """,
        "container",
        *hook,
    )
    assert done.stdout == "committed before the hook was over\n", done.stderr
    assert (tmp_path / "launcher").read_text() == "143"


def test_a_pod_without_such_a_step_is_left_alone(container, hook):
    done = container(
        """
        sleep 60 &
        "$@" && kill -0 $! && echo alive
        kill -9 $!
        """,
        "container",
        *hook,
    )
    assert done.stdout == "alive\n", done.stderr

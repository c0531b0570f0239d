"""The table of failure classes says what the code does."""

import re
from pathlib import Path

import roboimi
from pipelines import checks
from pipelines.cluster import campaign_runs, kfp_connection
from pipelines.local import docker_engine
from roboimi import errors
from roboimi.vla import preflight

TABLE = Path(roboimi.__file__).with_name("FAILURES.md")


def rows():
    lines = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| (yes|no) \| [^|]+ \| [^|]+ \|$", TABLE.read_text(), re.MULTILINE)
    return {name: (code, again == "yes") for code, name, again in lines}


def test_the_table_has_every_class_with_its_code_and_whether_running_again_can_help():
    found = [*vars(errors).values(), *vars(preflight).values(), *vars(checks).values()]
    found += vars(docker_engine).values()
    found += [*vars(kfp_connection).values(), *vars(campaign_runs).values()]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, errors.RoboimiError)]
    kinds = [kind for kind in kinds if "exit_code" in vars(kind)]  # others share their parent's
    expected = {kind.failure_class: (str(kind.exit_code), kind.retryable) for kind in kinds}
    expected[errors.Interrupted.failure_class] = ("128 + signal", True)
    assert rows() == expected


def test_no_two_classes_share_a_code_or_a_name():
    codes = [code for code, _ in rows().values()]
    assert len(set(codes)) == len(codes) >= 17

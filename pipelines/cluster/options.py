"""Options of the commands that talk to a Kubeflow Pipelines server."""

import argparse
from pathlib import Path

from pipelines.cluster.kfp_connection import HOST_VARIABLES, NAMESPACE_VARIABLE, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE
from pipelines.options import add_campaign, add_dataset, add_images, positive

Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"

EPILOG = """\
examples:
  roboimi dataset push datasets/mine s3://lab/datasets/mine     prints s3://lab/datasets/mine@sha256:...
  python -m pipelines submit --host https://kfp.example.org/pipeline --dataset s3://lab/datasets/mine@sha256:... --watch
  python -m pipelines status latest                             the newest campaign, until Ctrl-C
  python -m pipelines retry latest                              only what failed is run again
"""

NO_ARGUMENT = "A token is never an argument: arguments show in `ps`."


def add_submit(commands: Commands) -> argparse.ArgumentParser:
    """`submit`."""
    parser = _parser(
        commands, "submit", "start a campaign on a Kubeflow Pipelines server", "All is checked before anything is made."
    )
    add_dataset(parser, "s3://BUCKET/NAME@sha256:DIGEST", "what `roboimi dataset push` printed")
    add_campaign(parser)
    add_images(parser)
    where = parser.add_argument_group("where")
    where.add_argument("--store", metavar="s3://BUCKET/PREFIX", help="where results live (default: the profile's)")
    where.add_argument(
        "--profile", metavar="NAME|FILE.yaml", default="cluster", help="resources and defaults (default: cluster)"
    )
    where.add_argument("--experiment", metavar="NAME", default="roboimi", help="of KFP (default: %(default)s)")
    where.add_argument("--pipeline-root", metavar="URI", help="of KFP's own small artifacts (default: the server's)")
    where.add_argument("--service-account", metavar="NAME", help="of the pods (default: the server's)")
    order = parser.add_argument_group("what comes before and after")
    order.add_argument(
        "--name", metavar="NAME", default="roboimi-campaign", help="of the campaign (default: %(default)s)"
    )
    order.add_argument(
        "--supersede",
        action="store_true",
        help="first stop the active runs of this name in this experiment, wait for their end, archive them",
    )
    order.add_argument("--watch", action="store_true", help="follow it to its end; Ctrl-C leaves it going")
    order.add_argument(
        "--retries", metavar="N", type=_count, default=0, help="with --watch: retry what failed, if that can help"
    )
    checks = parser.add_argument_group("checks")
    checks.add_argument("--allow-dirty", action="store_true", help="submit with changes that are not committed")
    checks.add_argument(
        "--no-store-check",
        dest="store_check",
        action="store_false",
        help="do not look for the dataset, where this machine cannot reach the store",
    )
    add_server(parser)
    return parser


def add_status(commands: Commands) -> argparse.ArgumentParser:
    """`status`."""
    text = "Without RUN: the campaigns, newest first. With one: its steps, until it has ended."
    parser = _parser(commands, "status", "show the campaigns of a server, or the steps of one", text)
    _add_run(parser, nargs="?")
    parser.add_argument("--json", action="store_true", help="for programs; once")
    parser.add_argument("--once", action="store_true", help="print and end (what is done where there is no terminal)")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=positive, default=5, help="between two looks (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive, default=20, help="campaigns listed (default: %(default)s)"
    )
    parser.add_argument("--store", metavar="s3://BUCKET/PREFIX", help="of the launch records (default: the run's own)")
    add_server(parser)
    return parser


def add_retry(commands: Commands) -> argparse.ArgumentParser:
    """`retry`."""
    text = "Steps that succeeded are kept, and trainings go on from their last commit."
    parser = _parser(commands, "retry", "run what failed again", text)
    _add_run(parser)
    parser.add_argument("--force", action="store_true", help="also where the failure is one that this cannot help")
    parser.add_argument("--store", metavar="s3://BUCKET/PREFIX", help="of the launch records (default: the run's own)")
    add_server(parser)
    return parser


def add_stop(commands: Commands) -> argparse.ArgumentParser:
    """`stop`."""
    text = (
        "Waits until its pods are gone. What its trainings committed stays, and the next campaign goes on from there."
    )
    parser = _parser(commands, "stop", "end a run", text)
    _add_run(parser)
    parser.add_argument(
        "--limit",
        metavar="SECONDS",
        type=positive,
        default=300,
        help="how long it may take (default: %(default)s)",
    )
    add_server(parser)
    return parser


def add_server(parser: argparse.ArgumentParser) -> None:
    """How to reach KFP, and Kubernetes beside it."""
    server = parser.add_argument_group("server", NO_ARGUMENT)
    server.add_argument("--host", metavar="URL", help=f"of KFP's API (default: {' or '.join(HOST_VARIABLES)})")
    server.add_argument(
        "--namespace",
        metavar="NAME",
        help=f"of the pods (default: {NAMESPACE_VARIABLE}; kubeflow, where the server is for a single user)",
    )
    server.add_argument(
        "--token-file", metavar="FILE", type=Path, help=f"a bearer token, read anew each time ({TOKEN_FILE_VARIABLE})"
    )
    server.add_argument(
        "--token-env", metavar="VARIABLE", default=TOKEN_VARIABLE, help="or a variable with one (default: %(default)s)"
    )
    server.add_argument("--ca", metavar="FILE", type=Path, help="certificates to trust (default: the public ones)")
    server.add_argument("--ui", metavar="URL", help="of KFP's pages, where it is not the host")
    server.add_argument("--kube-context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    server.add_argument("--no-kubernetes", action="store_true", help="do not look at secrets, pods and events")


def _parser(commands: Commands, name: str, text: str, description: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. {description}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_run(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "--experiment", metavar="NAME", help="in which runs are looked for (default: in all, others' too)"
    )
    parser.add_argument("run", metavar="RUN", nargs=nargs, help="a run's id, a beginning of it, its name, or latest")


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


CLUSTER_COMMANDS = {"submit": add_submit, "status": add_status, "retry": add_retry, "stop": add_stop}
"""The commands, by the name of the function of `pipelines.cluster.commands` that does the work."""

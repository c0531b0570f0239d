"""The commands against a Kubeflow Pipelines server: `submit`, `status`, `retry` and `stop`."""

import argparse
import logging
import os
import time
from itertools import islice
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from pipelines.cluster.campaign_runs import LATEST, CampaignRun, campaign_runs, experiment_id_of, find_run
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import (
    HOST_VARIABLES,
    NAMESPACE_VARIABLE,
    TOKEN_FILE_VARIABLE,
    Connection,
    find_host,
)
from pipelines.cluster.kubernetes_api import Blind, Kubernetes, connect, own_namespace
from pipelines.cluster.retry import check_retry, failed_steps, retry_run
from pipelines.cluster.status import StatusReader
from pipelines.cluster.status_table import CampaignLine, list_json, list_table, make_console, run_json, run_table
from pipelines.cluster.stop import end_runs
from pipelines.cluster.watch import Watcher
from pipelines.profiles import load_profile
from roboimi.errors import ConfigError, StoreError
from roboimi.storage.store import Store, open_store

KFP_NAMESPACE = "kubeflow"
"""Where KFP is installed, and a server for a single user runs its pods."""

STORE_PATIENCE_S = 10.0
"""How long a store may be silent before a person who asks how things stand is told so."""


class Session:
    """One command's connections, and where its lines go.

    Args:
        options: of the command line, those of `pipelines.cluster.options.add_server` among them.
    """

    def __init__(self, options: argparse.Namespace):
        # What it repeats is said by us where it matters.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.options = options
        self.console = make_console()
        self.connection = connection_of(options)
        self.namespace = self.connection.namespace or KFP_NAMESPACE
        self._kubernetes: Kubernetes | Blind | None = None
        self._stores: dict[str, Store | str] = {}

    def enter(self) -> Self:
        """Connect to KFP.

        Raises:
            ServerError: it cannot be reached, or does not let us in.
        """
        self.api = KfpApi(self.connection)
        return self

    @property
    def kubernetes(self) -> Kubernetes | Blind:
        """The pods' namespace, or why it cannot be looked at."""
        if self._kubernetes is None:
            look = not self.options.no_kubernetes
            self._kubernetes = connect(self.namespace, context=self.options.kube_context, look=look)
        return self._kubernetes

    def store(self, run: CampaignRun) -> Store | str:
        """The store of a run's launch records, or why it cannot be opened."""
        uri = getattr(self.options, "store", None) or run.store or load_profile("cluster").defaults.store
        if uri not in self._stores:
            try:
                opened = open_store(uri)
                if hasattr(opened, "client"):
                    opened.client.patience = STORE_PATIENCE_S
                self._stores[uri] = opened
            except StoreError as error:
                self._stores[uri] = str(error)
        return self._stores[uri]

    def reader(self, run: CampaignRun) -> StatusReader:
        """What puts a run's status together."""
        return StatusReader(self.kubernetes, self.store(run))

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def command(self, verb: str, run: CampaignRun) -> str:
        """How to call a command for a run, from here."""
        host = "" if any(os.environ.get(name) for name in HOST_VARIABLES) else f" --host {self.connection.host}"
        namespace = f" --namespace {self.options.namespace}" if self.options.namespace else ""
        return f"python -m pipelines {verb} {run.id[:8]}{host}{namespace}"


def submit(options: argparse.Namespace) -> int:
    """`submit`: check, start, and with `--watch` follow; the exit code is 1 where a followed run failed."""
    from pipelines.cluster.submit import SubmitOptions, make_plan, start

    if options.retries and not options.watch:
        raise ConfigError("--retries needs --watch: without it nobody is there to retry.")
    session = Session(options)
    named = {field: getattr(options, field) for field in SubmitOptions.__dataclass_fields__}
    plan = make_plan(SubmitOptions(**named), session.say)
    session.enter()
    controller = list(dict.fromkeys([KFP_NAMESPACE, session.namespace]))
    run = start(plan, session.api, session.kubernetes, controller, session.say)
    session.say(f"run      {run.id}")
    session.say(f"name     {run.name}")
    session.say(f"page     {session.connection.run_page(run.id)}")
    if not options.watch:
        session.say(f"watch    {session.command('status', run)}")
        return 0
    return _follow(session, run, options.retries)


def _follow(session: Session, run: CampaignRun, retries: int) -> int:
    watcher = Watcher(session.api, session.reader(run), session.console, retries=retries)
    try:
        status = watcher.follow(run.id)
    except KeyboardInterrupt:
        session.say(f"the run goes on without being watched: {session.command('status', run)}")
        return 130
    for note in status.notes:
        session.say(f"note     {note}")
    session.say(f"ended    {run.name}: {status.run.state}")
    if failed_steps(status):
        session.say(f"retry    {session.command('retry', run)}")
    return 0 if status.run.state == "SUCCEEDED" else 1


def status(options: argparse.Namespace) -> int:
    """`status`: the campaigns, or the steps of one."""
    session = Session(options).enter()
    if options.run is None:
        runs = campaign_runs(session.api, experiment_id_of(session.api, options.experiment))
        lines = [CampaignLine(run, _arms_done(session, run)) for run in islice(runs, options.limit)]
        _print_list(session, lines, as_json=options.json)
        return 0
    run = find_run(session.api, options.run, options.experiment)
    reader, page = session.reader(run), session.connection.run_page(run.id)
    if options.json:
        print(run_json(reader.read(run), page))
        return 0
    seen = reader.read(run)
    if options.once or not session.console.is_terminal or not run.active:
        session.console.print(run_table(seen, page, session.console.width))
        return 0
    with Live(run_table(seen, page, session.console.width), console=session.console, auto_refresh=False) as live:
        while seen.run.active:
            time.sleep(options.interval)
            seen = reader.read(CampaignRun.of(session.api.run(run.id)))
            live.update(run_table(seen, page, session.console.width), refresh=True)
    return 0


def retry(options: argparse.Namespace) -> int:
    """`retry`: KFP's own retry of a run."""
    session = Session(options).enter()
    run = find_run(session.api, options.run, options.experiment)
    seen = session.reader(run).read(run)
    check_retry(seen, force=options.force)
    failed = failed_steps(seen)
    retry_run(session.api, run)
    session.say(f"retry    {', '.join(step.name for step in failed) or 'what failed'} of {run.name}")
    # KFP runs the exit task, which has succeeded, no second time.
    session.say("report   is written again in the store as arms end; the one that KFP shows stays as it is")
    for note in seen.notes:
        session.say(f"note     {note}")
    session.say(f"watch    {session.command('status', run)}")
    return 0


def stop(options: argparse.Namespace) -> int:
    """`stop`: end a run, its pods too."""
    if options.run == LATEST and options.experiment is None:
        raise ConfigError("The latest run may be somebody else's: give --experiment, or the run's id.")
    session = Session(options).enter()
    run = find_run(session.api, options.run, options.experiment)
    if not run.active:
        session.say(f"over     {run.name} has ended already: {run.state}")
        return 0
    end_runs(session.api, session.kubernetes, [run], say=session.say, limit_s=options.limit)
    session.say(
        "training killed where it was; it goes on from its last commit when a campaign with this arm is submitted"
    )
    return 0


def connection_of(options: argparse.Namespace) -> Connection:
    """The connection that options and environment describe.

    Raises:
        ConfigError: no server is named, or a file cannot be read.
    """
    token_file = options.token_file
    if token_file is None and not os.environ.get(options.token_env) and os.environ.get(TOKEN_FILE_VARIABLE):
        token_file = Path(os.environ[TOKEN_FILE_VARIABLE])
    return Connection(
        host=find_host(options.host),
        namespace=options.namespace or os.environ.get(NAMESPACE_VARIABLE) or own_namespace() or "",
        token_file=token_file,
        token_variable=options.token_env,
        ca=options.ca,
        page=options.ui,
    )


def _arms_done(session: Session, run: CampaignRun) -> int | None:
    """How many arms were evaluated; None where the store cannot be read."""
    store = session.store(run)
    if isinstance(store, str):
        return None
    try:
        records = [store.read_json(f"campaigns/{run.id}/{arm}/evaluate.json") for arm in run.arms]
    except StoreError:
        return None
    return sum(record is not None and record["status"] == "succeeded" for record in records)


def _print_list(session: Session, lines: list[CampaignLine], *, as_json: bool) -> None:
    if as_json:
        print(list_json(lines))
        return
    console: Console = session.console
    if not lines:
        session.say(f"no campaigns on {session.connection.host}")
        return
    console.print(list_table(lines))
    reasons = {text for line in lines if isinstance(text := session.store(line.run), str)}
    for reason in sorted(reasons):
        session.say(f"note     arms are not counted: {reason}")

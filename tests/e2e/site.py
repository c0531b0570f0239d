"""The cluster that the end-to-end tests run against: an endpoint of Kubeflow Pipelines, its object store, two images.

| variable | what |
|---|---|
| `KFP_HOST` | the API of Kubeflow Pipelines |
| `KFP_NAMESPACE` | where its pods run; kubeflow |
| `IMAGE_CPU`, `IMAGE_GPU` | images that the nodes can see, of the code that is tested |
| `MINIO_ENDPOINT`, `MINIO_ACCESS_KEY`, `MINIO_SECRET_KEY` | the object store, from here and from the pods |
| `MINIO_BUCKET` | a bucket to write in; all of it goes below the prefix `roboimi-e2e/` |
| `SERVICE_ACCOUNT` | as which the pods run; the server's default |
| `KUBECONFIG` | to read pods, to kill what the tests kill, and to make the campaign's secret and settings |
"""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import kfp
import kubernetes
import pytest
import yaml
from kubernetes.stream import stream

from roboimi.storage.s3_endpoint import endpoint_from_environment
from roboimi.storage.store import Store, open_store

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED = ("KFP_HOST", "IMAGE_CPU", "IMAGE_GPU", "MINIO_BUCKET")
PODS_OF_CAMPAIGNS = "app.kubernetes.io/part-of=roboimi-campaign"
EXPERIMENT = "roboimi-e2e"
ACTIVE = {"PENDING", "RUNNING", "CANCELING", "PAUSED"}
STOCK_RETRY = {"spec": {"templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}}}}
"""What the workflow controller of a stock Kubeflow Pipelines 2.17 adds to every workflow."""


@dataclass(frozen=True)
class Pod:
    """One pod of a step.

    Attributes:
        step: of the campaign, such as `train-policy`.
        name: of the pod.
        phase: as Kubernetes has it; `Deleted` when it was taken away.
        ended: how its main container ended.
        seconds: from its start to its end.
    """

    step: str
    name: str
    phase: str
    ended: str
    seconds: float | None


@dataclass
class Site:
    """What the tests do to the cluster, and what they read of it.

    Attributes:
        client: of Kubeflow Pipelines.
        core: of Kubernetes.
        namespace: of the pods.
        uri: of the store of these tests.
        store: the same, opened.
        seen: pods of a run that were seen, by uid; a retried step's pod may have the name of the one before.
        remarks: what was seen in a run besides.
    """

    client: kfp.Client
    core: kubernetes.client.CoreV1Api
    namespace: str
    uri: str
    store: Store
    seen: dict[str, dict[str, Pod]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def from_environment(cls) -> "Site":
        """Connect; fails the test session in one sentence where something is not said."""
        if missing := [name for name in NEEDED if not os.environ.get(name)]:
            pytest.fail(f"Set {', '.join(missing)}: tests/e2e/site.py says what they are.", pytrace=False)
        kubernetes.config.load_config()
        uri = f"s3://{os.environ['MINIO_BUCKET']}/roboimi-e2e/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        namespace = os.environ.get("KFP_NAMESPACE", "kubeflow")
        core = kubernetes.client.CoreV1Api()
        return cls(kfp.Client(host=os.environ["KFP_HOST"]), core, namespace, uri, open_store(f"{uri}/store"))

    # --- campaigns, through the command line that a user has ---

    def pipelines(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python -m pipelines ...`."""
        command = [sys.executable, "-m", "pipelines", *arguments]
        result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1200, check=False)
        if check and result.returncode:
            pytest.fail(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        return result

    def submit(self, dataset: str, *arguments: str, check: bool = True) -> str:
        """Submit a campaign at its small size; gives its run id."""
        known = {run.run_id for run in self.runs()}
        options = ["--profile", "trial", "--experiment", EXPERIMENT, "--dataset", dataset, "--store", self.store.uri]
        options += ["--cpu-image", os.environ["IMAGE_CPU"], "--gpu-image", os.environ["IMAGE_GPU"]]
        if account := os.environ.get("SERVICE_ACCOUNT"):
            options += ["--service-account", account]
        print(self.pipelines("submit", *options, *arguments, check=check).stdout)
        (run,) = [run for run in self.runs() if run.run_id not in known]
        return run.run_id

    def runs(self) -> list[Any]:
        """All runs of these tests' experiment, the newest first."""
        try:
            experiment = self.client.get_experiment(experiment_name=EXPERIMENT)
        except ValueError:  # not made yet
            return []
        listing = self.client.list_runs(
            experiment_id=experiment.experiment_id, page_size=100, sort_by="created_at desc"
        )
        return listing.runs or []

    def state(self, run_id: str) -> str:
        """The run's state as Kubeflow Pipelines has it."""
        self.look(run_id)
        return self.client.get_run(run_id).state

    def wait(self, run_id: str, timeout_s: float = 1200) -> str:
        """Wait for the run's end; gives its state."""
        self.until(lambda: self.state(run_id) not in ACTIVE, f"the end of run {run_id}", timeout_s)
        return self.state(run_id)

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 600) -> Any:
        """Look every two seconds until the condition gives something."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come within {timeout_s:g} s")
            time.sleep(2)
        return found

    def record(self, run_id: str, arm: str, step: str) -> dict[str, Any]:
        """A launch record of the run."""
        return self.store.read_json(f"campaigns/{run_id}/{arm}/{step}.json") or {}

    # --- pods ---

    def look(self, run_id: str) -> dict[str, Pod]:
        """The pods of the run's steps that were ever seen, by uid."""
        selector = f"{PODS_OF_CAMPAIGNS},pipeline/runid={run_id}"
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        seen = self.seen.setdefault(run_id, {})
        here = {pod.metadata.uid: _pod(pod) for pod in found}
        gone = {uid: replace(pod, phase="Deleted") for uid, pod in seen.items() if uid not in here}
        seen |= here | gone
        return seen

    def pods(self, run_id: str, step: str) -> list[Pod]:
        """The pods of one step, in no order."""
        return [pod for pod in self.look(run_id).values() if pod.step == step]

    def specification(self, pod: str) -> Any:
        """What Kubernetes made of the step."""
        return self.core.read_namespaced_pod(pod, self.namespace).spec

    def execute(self, pod: str, command: str) -> str:
        """Run a shell command in the step's container."""
        call = self.core.connect_get_namespaced_pod_exec
        arguments = {"command": ["/bin/sh", "-c", command], "container": "main", "stdout": True, "stderr": True}
        return stream(call, pod, self.namespace, **arguments)

    def delete(self, pod: str) -> None:
        """Delete a pod with its grace period, as a node that is drained does."""
        self.core.delete_namespaced_pod(pod, self.namespace)

    # --- the cluster's own settings ---

    @contextmanager
    def workflow_defaults(self, defaults: dict[str, Any] | None) -> Iterator[None]:
        """Within the block the workflow controller has these defaults; afterwards what it had before."""
        name = "workflow-controller-configmap"
        data = self.core.read_namespaced_config_map(name, self.namespace).data or {}
        before = data.get("workflowDefaults")

        def put(text: str | None) -> None:
            self.core.patch_namespaced_config_map(name, self.namespace, {"data": {"workflowDefaults": text}})
            time.sleep(10)  # the controller watches its ConfigMap, and says nowhere that it has read it

        put(None if defaults is None else yaml.safe_dump(defaults))
        try:
            yield
        finally:
            put(before)

    def provide(self) -> None:
        """Make the secret and the settings that steps read, where they are not there."""
        endpoint = endpoint_from_environment()
        credentials = endpoint.credentials.retrieve()
        secret = {"access_key": credentials.access_key, "secret_key": credentials.secret_key}
        self._ensure(self.core.create_namespaced_secret, "roboimi-store", stringData=secret)
        for name, key in (("roboimi-swanlab", "api_key"), ("roboimi-hub", "token")):
            # Backends before 2.16 take no notice of "optional".
            self._ensure(self.core.create_namespaced_secret, name, stringData={key: ""})
        settings = {"endpoint": endpoint.url, "region": endpoint.region, "swanlab_mode": "offline", "hub_offline": "1"}
        self._ensure(self.core.create_namespaced_config_map, "roboimi-defaults", data=settings)

    def _ensure(self, create: Callable[..., Any], name: str, **content: Any) -> None:
        try:
            create(self.namespace, {"metadata": {"name": name}, **content})
        except kubernetes.client.ApiException as error:
            if error.status != 409:
                raise

    def leave_nothing_running(self) -> None:
        """End whatever these tests left active."""
        for run in self.runs():
            if run.state in ACTIVE:
                self.client.terminate_run(run.run_id)

    def remark(self, run_id: str, sentence: str) -> None:
        """Print something that is worth knowing of a run, and keep it for its table."""
        print(sentence, flush=True)
        self.remarks.setdefault(run_id, []).append(sentence)

    def table(self, run_id: str, title: str) -> str:
        """What ran, as Markdown."""
        run = self.client.get_run(run_id)
        seconds = (run.finished_at - run.created_at).total_seconds()
        lines = [f"### {title}", "", f"run `{run_id}`: {run.state}, {seconds:.0f} s", ""]
        lines += [*(f"- {remark}" for remark in self.remarks.get(run_id, [])), ""]
        lines += ["| step | pod | ended | s |", "|---|---|---|---|"]
        for pod in sorted(self.look(run_id).values(), key=lambda pod: pod.name):
            took = "" if pod.seconds is None else f"{pod.seconds:.0f}"
            lines.append(f"| {pod.step} | …{pod.name[-12:]} | {pod.phase} {pod.ended} | {took} |")
        return "\n".join([*lines, ""])


def _pod(pod: Any) -> Pod:
    step = pod.metadata.labels["app.kubernetes.io/component"]
    main = next((s for s in pod.status.container_statuses or [] if s.name == "main"), None)
    ended = main.state.terminated if main and main.state else None
    if ended is None:
        return Pod(step, pod.metadata.name, pod.status.phase, "", None)
    seconds = _seconds(pod.metadata.creation_timestamp, ended.finished_at)
    return Pod(step, pod.metadata.name, pod.status.phase, f"exit {ended.exit_code}", seconds)


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None

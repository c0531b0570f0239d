"""A server that speaks the part of KFP's API (`/apis/v2beta1`) that campaigns use, with its fields, states and errors.

Field names, HTTP statuses and messages are those of KFP 2.14.3; they were compared by hand.
"""

import itertools
import json
import re
import uuid
from typing import Any

from tests.pipelines.cluster.simulated_server import Answer, SimulatedServer

ROOT = "/apis/v2beta1"
FINAL = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}


def error(status: int, code: int, message: str) -> Answer:
    """An error as the gateway in front of KFP's services writes it; `code` is that of gRPC."""
    return Answer(status, {"error": message, "code": code, "message": message, "details": []})


class SimulatedKfp(SimulatedServer):
    """See the module.

    Attributes:
        runs: by id, as the API gives them; tests change them.
        multi_user: whether there are namespaces of users.
        namespaces: those that the caller may use.
        token: the only one that is accepted; None: none is asked for.
        looks_until_over: how often a run that is terminated is still seen CANCELING.
        drops: a setting of pods that the server is too old to know.
        refuse: path ending -> answer, for what is broken on purpose.
        page: what the server answers to everything, as a login page in front of it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.uploads: list[str] = []
        self.multi_user = False
        self.namespaces = {"team"}
        self.token: str | None = None
        self.looks_until_over = 2
        self.refuse: dict[str, Answer] = {}
        self.page: bytes | None = None
        self.drops: str | None = None
        self._clock = itertools.count()
        self._looks: dict[str, int] = {}

    def add_run(self, name: str, state: str, parameters: dict[str, Any], **fields: Any) -> str:
        """A run that somebody started before."""
        experiment = self.make_experiment({"display_name": fields.pop("experiment", "roboimi")})
        body = {"display_name": name, "runtime_config": {"parameters": parameters}}
        run = self.make_run({**body, "experiment_id": experiment["experiment_id"]})
        run |= {"state": state, **fields}
        return run["run_id"]

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        """See `SimulatedServer.answer`."""
        if self.page is not None:
            return "text/html", self.page
        if path == f"{ROOT}/healthz":
            return {"multi_user": self.multi_user}
        self._authenticate()
        for ending, refusal in self.refuse.items():
            if f"{method} {path}".endswith(ending):
                raise refusal
        document = json.loads(body) if body and method == "POST" and "upload" not in path else {}
        self._authorize(query.get("namespace", document.get("namespace", "")), path)
        return self._route(method, path.removeprefix(ROOT), query, document, body)

    def _route(self, method: str, path: str, query: dict[str, str], document: dict[str, Any], body: bytes) -> Any:
        if path == "/experiments":
            if method == "GET":
                return self._list("experiments", self.experiments, query)
            return self.make_experiment(document)
        if path == "/pipelines":
            return self._list("pipelines", self.pipelines, query) if method == "GET" else self._make_pipeline(document)
        if path == "/pipelines/upload_version":
            return self._upload(query, body)
        if match := re.fullmatch(r"/pipelines/([^/]+)/versions", path):
            versions = {key: item for key, item in self.versions.items() if item["pipeline_id"] == match[1]}
            return self._list("pipeline_versions", versions, query)
        if match := re.fullmatch(r"/pipelines/[^/]+/versions/([^/]+)", path):
            del self.versions[match[1]]
            return {}
        if path == "/runs":
            if method == "POST":
                return self.make_run(document)
            wanted = query.get("experiment_id")
            # The newest first, as the client asks for.
            chosen = dict(reversed(self.runs.items()))
            chosen = {key: run for key, run in chosen.items() if wanted in (None, run["experiment_id"])}
            return self._list("runs", chosen, query)
        if match := re.fullmatch(r"/runs/([^:/]+)(?::(\w+))?", path):
            return self._run(match[1], match[2])
        raise error(404, 5, "Not Found")

    def make_experiment(self, document: dict[str, Any]) -> dict[str, Any]:
        """An experiment; the one of this name where there is one."""
        for found in self.experiments.values():
            if found["display_name"] == document["display_name"]:
                return found
        key = str(uuid.uuid4())
        self.experiments[key] = {"experiment_id": key, **document, "storage_state": "AVAILABLE"}
        return self.experiments[key]

    def make_run(self, document: dict[str, Any]) -> dict[str, Any]:
        """A run."""
        key = str(uuid.uuid4())
        made = f"2026-11-21T10:00:{next(self._clock) % 60:02d}Z"
        times = {"created_at": made, "scheduled_at": made, "finished_at": "1970-01-01T00:00:00Z"}
        self.runs[key] = {"run_id": key, "storage_state": "AVAILABLE", "state": "PENDING", **times, **document}
        return self.runs[key]

    def _make_pipeline(self, document: dict[str, Any]) -> dict[str, Any]:
        if any(item["display_name"] == document["display_name"] for item in self.pipelines.values()):
            raise error(409, 6, f"The name {document['display_name']} already exist. Please specify a new name.")
        key = str(uuid.uuid4())
        self.pipelines[key] = {"pipeline_id": key, "name": document["display_name"], **document}
        return self.pipelines[key]

    def _upload(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        if query.get("pipelineid") not in self.pipelines:
            raise Answer(400, {"error_message": "Failed to create a pipeline version", "error_details": ""})
        key = str(uuid.uuid4())
        version = {"pipeline_id": query["pipelineid"], "pipeline_version_id": key}
        self.uploads.append(body.decode())
        # One setting of pods that the server does not know, and it drops all of them.
        dropped = self.drops is not None and self.drops in body.decode()
        spec = {"root": {}} if dropped else {"pipeline_spec": {"root": {}}, "platform_spec": {"platforms": {}}}
        names = {"display_name": query["display_name"], "name": query["name"]}
        self.versions[key] = {**version, **names, "pipeline_spec": spec}
        return self.versions[key]

    def _run(self, key: str, verb: str | None) -> dict[str, Any]:
        run = self.runs.get(key)
        if run is None:
            raise error(404, 5, f"Failed to get a run: ResourceNotFoundError: Run {key} not found")
        if verb is None:
            self._go_on(run)
            return run
        over = run["state"] in FINAL
        if verb == "terminate":
            if over:
                raise error(400, 3, f"Failed to terminate a run: Failed to terminate a run {key}. Row not found")
            run["state"] = "CANCELING"
        elif verb == "retry":
            if run["state"] != "FAILED":
                raise error(409, 10, f"Failed to retry run {key}: Workflow must be Failed/Error to retry")
            run["state"] = "RUNNING"
        elif verb == "archive":
            run["storage_state"] = "ARCHIVED"
        return {}

    def _go_on(self, run: dict[str, Any]) -> None:
        """A run that is being terminated ends after some looks."""
        if run["state"] == "CANCELING":
            self._looks[run["run_id"]] = looks = self._looks.get(run["run_id"], 0) + 1
            if looks > self.looks_until_over:
                run["state"] = "FAILED"

    def _list(self, name: str, items: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        predicates = json.loads(query["filter"])["predicates"] if "filter" in query else []
        chosen = [item for item in items.values() if all(_holds(predicate, item) for predicate in predicates)]
        begin, size = int(query.get("page_token") or 0), int(query.get("page_size") or 10)
        page, end = chosen[begin : begin + size], begin + size
        answer: dict[str, Any] = {name: page, "total_size": len(chosen)} if chosen else {}
        return answer | ({"next_page_token": str(end)} if end < len(chosen) else {})

    def _authenticate(self) -> None:
        if self.token is not None and self.headers.get("authorization") != f"Bearer {self.token}":
            raise error(401, 16, "Request header error: there is no user identity header.")

    def _authorize(self, namespace: str, path: str) -> None:
        if self.multi_user and path.endswith(("/runs", "/experiments")) and namespace not in self.namespaces | {""}:
            what = f"ResourceAttributes: {{Namespace: {namespace}, Verb: list}}"
            raise error(403, 7, f"User 'ann' is not authorized with reason:  (request: {what})")


def _holds(predicate: dict[str, Any], item: dict[str, Any]) -> bool:
    value = str(item.get(predicate["key"], ""))
    wanted = str(predicate["string_value"])
    return {"EQUALS": value == wanted, "IS_SUBSTRING": wanted in value}[predicate["operation"]]

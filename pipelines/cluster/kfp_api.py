"""A Kubeflow Pipelines server: the calls that campaigns need, with every failure as one sentence.

The generated client `kfp_server_api` is used directly. `kfp.Client` asks an unreachable or refusing server five times
with pauses and prints the traceback of each, prints links of its own, and takes two seconds to import.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import urllib3
from kfp_server_api.exceptions import ApiException

from pipelines.cluster.kfp_connection import Connection, ServerError
from pipelines.cluster.kfp_errors import api_failure, short, transport_failure
from roboimi.errors import ConfigError

SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 5, 60
PAGE_SIZE = 100


class KfpApi:
    """The calls that campaigns need. Every method raises `ServerError` or one of its kinds.

    Args:
        connection: to which server.

    Raises:
        ConfigError: the server is one for several users, and no namespace was given.
        ServerError: it does not answer, is no KFP, or does not let us in.
    """

    def __init__(self, connection: Connection):
        self.connection = connection
        self._namespace: str | None = None
        configuration = kfp_server_api.Configuration(host=connection.host.rstrip("/"))
        configuration.retries = urllib3.Retry(total=2, connect=1, redirect=False, backoff_factor=0.2)
        configuration.ssl_ca_cert = str(connection.ca) if connection.ca else None
        if connection.has_token:
            # Replaced by the hook before every request; without a value here no token is sent at all.
            configuration.api_key["authorization"] = ""
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = self._refresh
        client = kfp_server_api.ApiClient(configuration)
        self._runs = kfp_server_api.RunServiceApi(client)
        self._experiments = kfp_server_api.ExperimentServiceApi(client)
        self._pipelines = kfp_server_api.PipelineServiceApi(client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(client)
        self._enter(kfp_server_api.HealthzServiceApi(client))

    def experiment_id(self, name: str) -> str | None:
        """The id of an experiment, or None where there is none of this name."""
        answer = self._ask(
            f"experiment {name!r}",
            self._experiments.experiment_service_list_experiments,
            filter=_equals("display_name", name),
            namespace=self._namespace,
        )
        found = [item for item in answer.experiments or [] if item.display_name == name]
        return found[0].experiment_id if found else None

    def make_experiment(self, name: str) -> str:
        """The id of an experiment, which is made where there is none."""
        if found := self.experiment_id(name):
            return found
        wanted = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self._namespace)
        create = self._experiments.experiment_service_create_experiment
        return self._ask(f"making experiment {name!r}", create, wanted).experiment_id

    def make_pipeline(self, name: str, description: str) -> str:
        """The id of a pipeline, which is made, without a version, where there is none of this name."""
        namespace = self._namespace
        answer = self._ask(
            f"pipeline {name!r}",
            self._pipelines.pipeline_service_list_pipelines,
            filter=_equals("display_name", name),
            namespace=namespace,
        )
        for item in answer.pipelines or []:
            if item.display_name == name:
                return item.pipeline_id
        wanted = kfp_server_api.V2beta1Pipeline(display_name=name, description=description, namespace=namespace)
        create = self._pipelines.pipeline_service_create_pipeline
        return self._ask(f"making pipeline {name!r}", create, wanted).pipeline_id

    def make_version(self, pipeline_id: str, name: str, compiled: Path, description: str) -> tuple[str, bool]:
        """The id of a pipeline's version, which is uploaded where there is none of this name.

        Returns:
            The id, and whether it was uploaded now.

        Raises:
            ServerError: the server did not understand what the pipeline says of pods. It drops all of that without a
                word where it does not know one setting, and would run steps without their secrets and resources.
        """
        answer = self._ask(
            f"version {name!r}",
            self._pipelines.pipeline_service_list_pipeline_versions,
            pipeline_id,
            filter=_equals("display_name", name),
        )
        for item in answer.pipeline_versions or []:
            if item.display_name == name and _understood(item):
                return item.pipeline_version_id, False
        upload = self._uploads.upload_pipeline_version
        version = self._ask(
            f"uploading version {name!r}",
            upload,
            str(compiled),
            name=name,
            display_name=name,
            pipelineid=pipeline_id,
            description=description,
        )
        if not _understood(version):
            delete = self._pipelines.pipeline_service_delete_pipeline_version
            self._ask(f"removing version {name!r}", delete, pipeline_id, version.pipeline_version_id)
            raise ServerError(
                f"KFP at {self.connection.host} does not understand what the pipeline says of pods, and would run them "
                "without secrets and labels: update it to 2.17, or leave newer settings out of the profile (ttl_s: 0)."
            )
        return version.pipeline_version_id, True

    def make_run(
        self,
        name: str,
        *,
        experiment_id: str,
        pipeline_id: str,
        version_id: str,
        arguments: dict[str, Any],
        pipeline_root: str | None,
        service_account: str | None,
    ) -> Any:
        """Start a run; its steps keep the caching that they were compiled with."""
        reference = kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=version_id
        )
        wanted = kfp_server_api.V2beta1Run(
            experiment_id=experiment_id,
            display_name=name,
            pipeline_version_reference=reference,
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=arguments, pipeline_root=pipeline_root),
            service_account=service_account,
        )
        return self._ask(f"making run {name!r}", self._runs.run_service_create_run, wanted)

    def run(self, run_id: str) -> Any:
        """One run, with the details of its tasks.

        Raises:
            NotFoundError: there is none of this id.
        """
        return self._ask(f"run {run_id}", self._runs.run_service_get_run, run_id)

    def runs(
        self, *, experiment_id: str | None = None, predicates: list[dict[str, Any]] | None = None
    ) -> Iterator[Any]:
        """Runs, newest first, fetched as they are consumed.

        Args:
            experiment_id: of one experiment; None: of the whole namespace.
            predicates: in the form of KFP's filters.
        """
        token = ""
        where = {"experiment_id": experiment_id} if experiment_id else {"namespace": self._namespace}
        chosen = json.dumps({"predicates": predicates}) if predicates else None
        while True:
            page = self._list_runs(
                "its runs", page_size=PAGE_SIZE, sort_by="created_at desc", filter=chosen, page_token=token, **where
            )
            yield from page.runs or []
            token = page.next_page_token
            if not token:
                return

    def terminate(self, run_id: str) -> None:
        """Ask for a run's end, which comes later."""
        self._ask(f"stopping run {run_id}", self._runs.run_service_terminate_run, run_id)

    def retry(self, run_id: str) -> None:
        """Run the failed steps of a run again; those that succeeded are kept."""
        self._ask(f"retrying run {run_id}", self._runs.run_service_retry_run, run_id)

    def archive(self, run_id: str) -> None:
        """Move a run out of the lists; nothing is lost."""
        self._ask(f"archiving run {run_id}", self._runs.run_service_archive_run, run_id)

    def _enter(self, health: kfp_server_api.HealthzServiceApi) -> None:
        host, namespace = self.connection.host, self.connection.namespace
        answer, _, headers = self._ask("its health", health.healthz_service_get_healthz_with_http_info)
        if "json" not in headers.get("Content-Type", ""):
            raise ServerError(
                f"{host} answers with a page and not as KFP's API does: correct --host (a path such as /pipeline may "
                "be missing), or give a token if a login is in front of it."
            )
        if answer.multi_user:
            if not namespace:
                raise ConfigError(f"KFP at {host} has a namespace for each user: give yours by --namespace.")
            self._namespace = namespace
        # The health is told to everybody; the runs are not.
        self._list_runs("its runs", page_size=1, namespace=self._namespace)

    def _list_runs(self, what: str, **options: Any) -> Any:
        return self._ask(what, self._runs.run_service_list_runs, **_given(options))

    def _refresh(self, configuration: kfp_server_api.Configuration) -> None:
        configuration.api_key["authorization"] = self.connection.token()

    def _ask(self, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            timeout = (SECONDS_TO_CONNECT, SECONDS_TO_ANSWER)
            return function(*arguments, **_given(options), _request_timeout=timeout)
        except ApiException as error:
            raise api_failure(self.connection, self._namespace, what, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise transport_failure(self.connection, error) from error
        except (OSError, ValueError) as error:
            # What the generated client makes of an answer that is not the one it knows.
            raise ServerError(
                f"KFP at {self.connection.host} answers {what} in an unknown form ({short(error)}): see --host."
            ) from error


def _understood(version: Any) -> bool:
    """Whether a version has its platform's part; True where the server does not show any part."""
    return not version.pipeline_spec or "platform_spec" in version.pipeline_spec


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": value}]})


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}

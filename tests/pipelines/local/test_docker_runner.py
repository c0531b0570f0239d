"""Protects steps that run in containers: what they get of this machine, how they end, and that none is left behind.

The tests with containers want a Docker engine and an image with a shell; without either they are skipped.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from components.images import CPU_IMAGE
from pipelines.local import docker_runner
from pipelines.local.docker_engine import JOB_LABEL, OWNER_LABEL, Containers, EngineError, check_images, connect
from pipelines.local.request import DOCKER, LocalRequest
from pipelines.local.run import Outcome, failures, run_local, unrecorded_steps
from roboimi.vla.data.manifest import DatasetRef
from tests.conftest import make_tiny_dataset

IMAGES = (CPU_IMAGE, "roboimi-base:bookworm")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetRef:
    return make_tiny_dataset(tmp_path_factory.mktemp("data"), frames=4, cameras=("top",), image_size=(16, 16))


@pytest.fixture
def request_for(tmp_path, dataset):
    """A campaign's request; keyword arguments go before its own."""

    def make(**arguments) -> LocalRequest:
        own = {"store": str(tmp_path / "store"), "dataset": dataset.text, "encoder": "standin", "experiments": []}
        return LocalRequest(
            profile="local",
            job_id=f"test-{os.getpid()}",
            arguments=own | arguments,
            pipeline_root=str(tmp_path / "artifacts"),
            workspace_root=str(tmp_path / "workspace"),
            owner_pid=os.getpid(),
            runner=DOCKER,
        )

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mounted(arguments) -> dict[str, bool]:
    """Each mounted path, and whether it is read-only; always under the path that it has here."""
    assert all(mount["Source"] == mount["Target"] and mount["Type"] == "bind" for mount in arguments["mounts"])
    return {mount["Target"]: mount["ReadOnly"] for mount in arguments["mounts"]}


def test_a_step_sees_the_folders_of_the_campaign_under_their_own_paths(request_for, dataset, tmp_path, cache):
    arguments = docker_runner.container_arguments(request_for(), os.environ)
    folders = mounted(arguments)
    for folder in (tmp_path / "store", dataset.root, cache):
        assert folders[str(folder)] is False
        assert folder.is_dir(), "the engine would make it root's"


def test_of_a_store_that_is_no_folder_nothing_is_mounted(request_for, cache):
    request = request_for(store="s3://lab/store", dataset="s3://lab/data@sha256:" + "0" * 64)
    assert set(mounted(docker_runner.container_arguments(request, {}))) == {str(cache)}


def test_an_encoder_in_a_folder_comes_along(request_for, tmp_path, cache):
    encoder = tmp_path / "tower"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    assert str(encoder) in mounted(docker_runner.container_arguments(request_for(encoder=str(encoder)), {}))


def test_an_encoder_of_the_hub_is_fetched_once_for_all_steps(request_for, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = docker_runner.container_arguments(request_for(encoder="google/siglip2@" + "0" * 40), {})
    hub = str(tmp_path / ".cache" / "huggingface")
    assert arguments["environment"]["HF_HOME"] == hub
    assert mounted(arguments)[hub] is False


def test_credentials_and_certificates_reach_a_step_and_this_machines_paths_do_not(request_for, tmp_path, cache):
    certificates = tmp_path / "ca.crt"
    certificates.touch()
    here = {
        "MINIO_ENDPOINT": "http://localhost:9000",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CA_BUNDLE": str(certificates),
        "SWANLAB_API_KEY": "key",
        "ROBOIMI_PARENT_PID": "1",
        "https_proxy": "http://proxy:3128",
        "HOME": "/root",
        "PATH": "/nowhere",
        "MUJOCO_GL": "osmesa",
        "OMP_NUM_THREADS": "7",
        "ROBOIMI_REVISION": "that of this checkout",
    }
    arguments = docker_runner.container_arguments(request_for(), here)
    kept = set(here) - {"HOME", "PATH", "MUJOCO_GL", "OMP_NUM_THREADS", "ROBOIMI_REVISION"}
    assert arguments["environment"] == {name: here[name] for name in kept} | {"ROBOIMI_CACHE": str(cache)}
    assert mounted(arguments)[str(certificates)] is True


def test_the_logs_of_steps_are_written_outside(request_for, tmp_path, cache):
    arguments = docker_runner.container_arguments(request_for(), {"ROBOIMI_LOGS": str(tmp_path / "logs")})
    assert mounted(arguments)[str(tmp_path / "logs")] is False
    assert (tmp_path / "logs").is_dir()


def test_what_a_step_writes_belongs_to_who_runs_the_campaign(request_for, cache):
    arguments = docker_runner.container_arguments(request_for(), {})
    assert arguments["user"] == f"{os.getuid()}:{os.getgid()}"
    # The PID in a launch record, and localhost, mean the same inside and outside.
    assert (arguments["pid_mode"], arguments["network_mode"]) == ("host", "host")


def record(arm: str, step: str) -> dict[str, str]:
    return {"arm": arm, "step": step, "status": "succeeded"}


SHARED = [record("campaign", step) for step in ("validate", "smoke", "encode", "compare")]


def test_a_step_without_a_launch_record_did_not_run():
    arms = [{"arm": "a"}, {"arm": "b"}]
    records = [*SHARED, record("a", "train"), record("a", "evaluate"), record("b", "train")]
    assert unrecorded_steps(records, {"experiments": arms}) == ("evaluate b",)
    assert unrecorded_steps([*records, record("b", "evaluate")], {"experiments": arms}) == ()
    assert unrecorded_steps([], {"experiments": []}) == ("validate", "smoke", "encode", "compare")


def test_a_step_without_a_launch_record_is_a_failure_with_a_sentence(tmp_path):
    outcome = Outcome("job", 1, SHARED, tmp_path / "log", None, ("train a",))
    ((sentence, log),) = failures(outcome)
    assert sentence == "train a: it left no launch record, so it did not run to its end"
    assert log == str(tmp_path / "log")


def test_a_runner_that_reports_success_is_not_believed_without_the_records(tmp_path, monkeypatch):
    # In place of the worker, a program that does nothing and says that all is well.
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    arguments = {"store": str(tmp_path / "store"), "experiments": [{"arm": "a", "overrides": []}]}
    with open(tmp_path / "terminal", "w") as file:
        outcome = run_local(arguments, profile="local", outputs=tmp_path / "outputs", console=Console(file=file))
    assert outcome.exit_code == 1
    assert [sentence.split(":")[0] for sentence, _ in failures(outcome)][:2] == ["validate", "smoke"]


def test_without_an_engine_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(EngineError, match="No Docker engine answers"):
        connect()


@pytest.fixture(scope="module")
def image(engine) -> str:
    here = {tag for found in engine.images.list() for tag in found.tags}
    for name in IMAGES:
        if name in here:
            return name
    pytest.skip(f"none of {', '.join(IMAGES)} is on this machine: make images")


def containers_of(engine, job_id: str) -> list:
    return engine.containers.list(all=True, ignore_removed=True, filters={"label": f"{JOB_LABEL}={job_id}"})


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("exit 20", 20), ("kill -9 $$", 137)])
def test_a_container_that_ends_at_once_has_its_own_exit_code(engine, image, command, code):
    # In a process namespace of its own, the first process cannot kill itself.
    arguments = {"labels": {JOB_LABEL: f"codes-{os.getpid()}"}, "pid_mode": "host"}
    for _ in range(3):
        assert docker_runner.run_container(engine, image, ["sh", "-c", command], {}, **arguments) == code
    assert containers_of(engine, f"codes-{os.getpid()}") == []


def test_the_code_is_right_although_the_engine_removed_nothing_for_us(engine, image, capsys):
    code = docker_runner.run_container(engine, image, ["sh", "-c", "echo $ROBOIMI_IMAGE; sleep 0.3; exit 3"], {})
    assert code == 3
    assert capsys.readouterr().out == f"{image}\n"


def test_a_failed_container_is_a_failed_task_for_kfp(engine, image, request_for, cache, tmp_path, monkeypatch):
    """Whose own handler takes a container for a success that has ended, and is gone, before its logs were read."""
    from kfp import dsl, local

    request = request_for()

    @dsl.container_component
    def fails():
        return dsl.ContainerSpec(image=image, command=["sh", "-c", "echo last words; exit 20"])

    def slow_print(*values: object, **options: object) -> None:
        while "last words" in str(values) and any(is_ending(found) for found in containers_of(engine, request.job_id)):
            pass

    runner = docker_runner.make_runner(request)
    local.init(runner=runner, pipeline_root=str(tmp_path / "artifacts"), workspace_root=str(tmp_path / "workspace"))
    monkeypatch.setattr("builtins.print", slow_print)
    with pytest.raises(RuntimeError, match="FAILURE"):
        fails()


def is_ending(container) -> bool:
    """Whether a container runs, or has ended and is about to be removed by the engine."""
    return container.status == "running" or container.attrs["HostConfig"]["AutoRemove"]


def test_a_container_that_somebody_removes_has_failed(engine, image):
    label = {JOB_LABEL: f"removed-{os.getpid()}"}

    def remove_it() -> None:
        while not (found := engine.containers.list(filters={"label": [f"{key}={label[key]}" for key in label]})):
            pass
        found[0].remove(force=True)

    remover = threading.Thread(target=remove_it)
    remover.start()
    assert docker_runner.run_container(engine, image, ["sleep", "60"], {}, labels=label) != 0
    remover.join()


def test_a_campaigns_containers_are_known_by_their_processes_and_removed(engine, image):
    job = f"stop-{os.getpid()}"
    arguments = {"detach": True, "pid_mode": "host", "labels": {JOB_LABEL: job, OWNER_LABEL: str(os.getpid())}}
    container = engine.containers.run(image, ["sleep", "60"], **arguments)
    container.reload()
    pid = container.attrs["State"]["Pid"]
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert Containers(job).own(pid)
        assert not Containers(job).own(other.pid)
        assert not Containers("another").own(pid)
        Containers(job).remove_abandoned()
        assert containers_of(engine, job), "its campaign lives"
    finally:
        Containers(job).remove()
        other.kill()
        other.wait()
    assert containers_of(engine, job) == []
    assert not Path(f"/proc/{pid}").exists()


def test_the_containers_of_a_killed_campaign_are_removed_by_the_next(engine, image):
    job = f"abandoned-{os.getpid()}"
    dead = subprocess.Popen(["true"])
    dead.wait()
    engine.containers.run(image, ["true"], detach=True, labels={JOB_LABEL: job, OWNER_LABEL: str(dead.pid)})
    Containers("next").remove_abandoned()
    assert containers_of(engine, job) == []


def test_an_image_with_other_code_is_refused(engine, image):
    with pytest.raises(EngineError, match=r"is not on this machine: build it with `make images`\.$"):
        check_images(["roboimi-nothing:1"], None)
    with pytest.raises(EngineError, match=f"holds the code .*, and this checkout is {'0' * 40}"):
        check_images([image], "0" * 40)


def test_a_campaign_whose_step_fails_in_a_container_fails(engine, image, request_for, cache, tmp_path):
    """The whole way: worker, kfp.local, container, launch record, exit code, sentence; and nothing is left."""
    if image != CPU_IMAGE:
        pytest.skip(f"{CPU_IMAGE} is not on this machine: make images")
    arguments = request_for().arguments
    arguments |= {
        "dataset_digest": "0" * 64,
        "train_overrides": [],
        "eval_episodes": 1,
        "eval_seed": 0,
        "code_revision": "",
    }
    with open(tmp_path / "terminal", "w") as file:
        outcome = run_local(
            arguments, profile="local", outputs=tmp_path / "outputs", console=Console(file=file), runner=DOCKER
        )
    assert outcome.exit_code == 1
    sentences = [sentence for sentence, _ in failures(outcome)]
    assert any(sentence.startswith("validate: ") for sentence in sentences), sentences
    (log,) = [Path(log) for sentence, log in failures(outcome) if sentence.startswith("validate: ")]
    assert "has the digest" in log.read_text()
    assert containers_of(engine, outcome.job_id) == []

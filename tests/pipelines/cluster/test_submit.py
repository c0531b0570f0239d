"""Protects submitting: all is checked before anything is made, versions are reused, the run holds what it was given."""

import json
import os
import re
import signal

import pytest

from pipelines.arguments import TAKE_OVER
from pipelines.cli import main
from pipelines.cluster.kfp_connection import ServerError, ServerUnavailableError
from roboimi.storage.store import open_store
from roboimi.vla.config import compose_config
from roboimi.vla.data.dataset_store import push_dataset
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.models.staged_weights import stage_weights
from tests.conftest import make_tiny_dataset
from tests.minio_server import free_port

DIGEST = "a" * 64
DATASET = f"s3://lab/cube@sha256:{DIGEST}"
REVISION = "0123456789abcdef0123456789abcdef01234567"
SUBMIT = ["submit", "--dataset", DATASET, "--no-store-check", "--profile", "trial"]


@pytest.fixture(autouse=True)
def revision(monkeypatch):
    """The tests run whatever state the checkout is in."""
    monkeypatch.setenv("ROBOIMI_REVISION", REVISION)


@pytest.fixture
def refused(kfp, kubernetes, capsys):
    """`refused(...)`: submits, which has to fail; gives the sentence, once nothing was made on the server."""

    def run(*arguments):
        code = main([*SUBMIT, *arguments])
        sentence = capsys.readouterr().err
        assert code
        assert sentence.startswith("error: ")
        assert sentence.count("\n") == 1
        assert [path for method, path in kfp.requests if method != "GET"] == []
        return sentence

    return run


def test_a_campaign_is_submitted_with_its_parameters_and_a_version_that_is_used_again(kfp, kubernetes, capsys):
    options = ["--only", "projection-96", "--steps", "7", "--store", "s3://lab/store", "--service-account", "trainer"]
    assert main([*SUBMIT, *options, "--pipeline-root", "s3://lab/kfp"]) == 0
    (run,) = kfp.runs.values()
    parameters = run["runtime_config"]["parameters"]
    assert parameters["dataset"] == DATASET
    assert parameters["dataset_digest"] == DIGEST
    assert [arm["arm"] for arm in parameters["experiments"]] == ["projection-96"]
    assert parameters["store"] == "s3://lab/store"
    assert parameters["code_revision"] == REVISION
    assert parameters["eval_shards"] == ["1/2", "2/2"]
    assert "train.steps=7" in parameters["train_overrides"]
    assert TAKE_OVER not in parameters["train_overrides"]
    assert run["service_account"] == "trainer"
    assert run["runtime_config"]["pipeline_root"] == "s3://lab/kfp"
    # Steps keep the caching that they were compiled with.
    assert "enable_caching" not in json.dumps(run)
    (version,) = kfp.versions.values()
    assert re.fullmatch(r"0123456-[0-9a-f]{8}", version["display_name"])
    assert re.fullmatch(rf"roboimi-campaign-{version['display_name']}-\d{{8}}T\d{{6}}Z", run["display_name"])
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert "roboimi campaign, profile trial" in kfp.uploads[0]
    out = capsys.readouterr().out
    for part in (f"run      {run['run_id']}", f"{kfp.url}/#/runs/details/{run['run_id']}", "not by digest"):
        assert part in out
    assert f"python -m pipelines status {run['run_id'][:8]}" in out

    assert main([*SUBMIT, *options]) == 0
    assert len(kfp.versions) == 1
    assert len(kfp.runs) == 2
    assert "(found)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--dataset", "datasets/mine"], "roboimi dataset push"),
        (["--dataset", "s3://lab/cube"], "@sha256:DIGEST"),
        (["--store", "outputs/store"], "Pods cannot see the store"),
        (["--encoder", "{tmp}"], "Pods cannot see the folder"),
        (["--encoder", "google/siglip2-base-patch16-256"], "not pinned"),
        (["--set", "trian.steps=3"], "trian"),
        (["--only", "projection-97"], "No arm is called projection-97"),
        (["--profile", "local"], "runs on this machine"),
        (["--profile", "nothing"], "There is no profile 'nothing'"),
        (["--name", "My Campaign"], "--name"),
        (["--retries", "2"], "--watch"),
        (["--namespace", "nowhere"], "There is no namespace 'nowhere'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(refused, tmp_path, arguments, part):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert part in refused(*[text.format(tmp=tmp_path) for text in arguments])


def test_a_dirty_checkout_is_submitted_only_when_that_is_said(refused, kfp, kubernetes, monkeypatch, capsys):
    monkeypatch.setenv("ROBOIMI_REVISION", f"{REVISION}-dirty")
    assert "--allow-dirty" in refused()
    # Secrets that may not be read are no obstacle.
    kubernetes.forbidden.add("/secrets/roboimi-store")
    assert main([*SUBMIT, "--allow-dirty"]) == 0
    assert "secrets were not looked at: Kubernetes answers 403" in capsys.readouterr().out
    (run,) = kfp.runs.values()
    assert run["runtime_config"]["parameters"]["code_revision"] == f"{REVISION}-dirty"
    assert run["display_name"].startswith("roboimi-campaign-0123456-dirty-")


def test_a_server_that_would_drop_what_is_said_of_pods_runs_nothing(kfp, kubernetes, capsys):
    kfp.drops = "resourceTtlOnCompletion"
    assert main([*SUBMIT, "--profile", "cluster"]) == ServerError.exit_code
    assert "does not understand what the pipeline says of pods" in capsys.readouterr().err
    assert kfp.uploads
    assert not kfp.runs
    assert not kfp.versions


def test_a_server_that_does_not_answer_is_said(kfp, capsys):
    assert main([*SUBMIT, "--host", f"http://127.0.0.1:{free_port()}"]) == ServerUnavailableError.exit_code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_secret_is_said_before_a_pod_waits_for_it(refused, kubernetes):
    kubernetes.secrets.clear()
    assert "no secret roboimi-store" in refused()


def test_a_secret_without_a_key_is_said_too(refused, kubernetes):
    del kubernetes.secrets["roboimi-store"]["secret_key"]
    assert "Secret roboimi-store in 'kubeflow' lacks secret_key" in refused()


@pytest.fixture
def terminal():
    """Ctrl-C as a person's terminal has it; jobs that a shell started in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_watching_and_not_the_run(terminal, kfp, kubernetes, capsys, monkeypatch):
    answer = kfp.answer

    def interrupt(method, path, query, body):
        if method == "GET" and path.rpartition("/")[2] in kfp.runs:
            os.kill(os.getpid(), signal.SIGINT)  # while the command waits for this answer
        return answer(method, path, query, body)

    monkeypatch.setattr(kfp, "answer", interrupt)
    assert main([*SUBMIT, "--watch"]) == 130
    (run,) = kfp.runs.values()
    assert run["state"] == "PENDING"
    assert f"the run goes on without being watched: python -m pipelines status {run['run_id'][:8]}" in (
        capsys.readouterr().out
    )


@pytest.fixture
def pushed(bucket, tmp_path):
    """A small dataset in the bucket of a real object store."""
    ref = make_tiny_dataset(tmp_path / "data", frames=24, cameras=compose_config()["task"]["cameras"])
    return push_dataset(ref, f"s3://{bucket}/datasets/tiny")


def test_the_dataset_is_looked_for_in_the_store(pushed, kfp, kubernetes, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "empty"))
    base = ["submit", "--profile", "trial"]
    wrong = f"{pushed.partition('@')[0]}@sha256:{DIGEST}"
    assert main([*base, "--dataset", wrong]) == 3
    assert "holds no dataset of the digest aaaaaaaaaaaa" in capsys.readouterr().err
    assert main([*base, "--dataset", pushed, "--set", "pred_horizon=32"]) == 2
    assert "pred_horizon=32" in capsys.readouterr().err
    kubernetes.secrets.clear()
    assert main([*base, "--dataset", pushed]) == 2
    out, err = capsys.readouterr()
    assert "(3 episodes)" in out
    assert "no secret roboimi-store" in err  # the next check: this dataset is there, and fits
    assert not kfp.runs


def test_where_pods_find_the_encoder_is_said(pushed, bucket, kfp, kubernetes, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "empty"))
    kubernetes.secrets.clear()  # nothing is to be submitted
    encoder, store = f"google/siglip2-base-patch16-256@{'3f' * 20}", f"s3://{bucket}/store"
    base = ["submit", "--profile", "trial", "--dataset", pushed, "--store", store, "--encoder", encoder]
    assert main(base) == 2
    assert "not staged: every pod asks the hub" in " ".join(capsys.readouterr().out.split())
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    stage_weights(open_store(store), EncoderSpec.parse(encoder), tmp_path)
    assert main(base) == 2
    assert "staged in the store" in " ".join(capsys.readouterr().out.split())

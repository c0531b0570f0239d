"""Protects the way to a KFP server: whatever is wrong with it, its token or its namespace is one sentence, at once."""

import pytest

from pipelines.cli import main
from pipelines.cluster.kfp_api import PAGE_SIZE, KfpApi
from pipelines.cluster.kfp_connection import Connection, ServerRefusedError, ServerUnavailableError, find_host
from roboimi.errors import ConfigError
from tests.minio_server import free_port
from tests.pipelines.cluster.simulated_kfp import error
from tests.pipelines.cluster.simulated_server import Answer


@pytest.fixture
def failing(capsys):
    """`failing("status", ...)`: runs a command that has to fail; gives its exit code and its one sentence."""

    def run(*arguments):
        code = main(list(arguments))
        out, sentence = capsys.readouterr()
        assert code
        assert sentence.startswith("error: ")
        assert sentence.count("\n") == 1
        assert not out
        return code, sentence

    return run


def test_a_host_that_nobody_serves_is_named(kfp, failing):
    host = f"http://127.0.0.1:{free_port()}"
    code, sentence = failing("status", "--host", host)
    assert code == ServerUnavailableError.exit_code
    assert f"KFP at {host} does not answer" in sentence
    assert "Connection refused" in sentence


@pytest.mark.parametrize("host", ["ftp://kfp", "https://ann:secret@kfp", "https://"])
def test_a_host_that_is_no_plain_url_is_refused(kfp, failing, host):
    _, sentence = failing("status", "--host", host)
    assert "no plain URL" in sentence


def test_without_a_host_the_environment_is_asked(kfp, failing, monkeypatch):
    assert find_host(None) == kfp.url
    assert find_host("kfp.example.org") == "https://kfp.example.org"
    monkeypatch.delenv("KFP_HOST")
    _, sentence = failing("status")
    assert "--host" in sentence


def test_a_token_is_asked_for_where_there_is_none(kfp, failing):
    kfp.token = "right"
    code, sentence = failing("status")
    assert code == ServerRefusedError.exit_code
    assert "wants a token: put one into the environment variable KFP_TOKEN" in sentence


def test_a_refusal_is_found_on_entering(kfp):
    """The server's health is told to everybody; `submit` must not learn only from its first upload."""
    kfp.token = "right"
    with pytest.raises(ServerRefusedError):
        KfpApi(Connection(kfp.url))


def test_a_gateways_refusal_asks_for_a_token_too(kfp, failing):
    kfp.refuse["GET /apis/v2beta1/runs"] = Answer(403, "RBAC: access denied")
    _, sentence = failing("status")
    assert "wants a token" in sentence


def test_an_expired_token_is_told_apart(kfp, failing, monkeypatch):
    kfp.token = "right"
    monkeypatch.setenv("KFP_TOKEN", "expired")
    _, sentence = failing("status")
    assert "does not accept the token, which may have expired: get a new one into KFP_TOKEN" in sentence
    assert "expired-token" not in sentence


def test_a_token_of_a_file_is_read_anew_for_every_request(kfp, tmp_path):
    kfp.token, file = "first", tmp_path / "token"
    file.write_text("first\n")
    api = KfpApi(Connection(kfp.url, token_file=file))
    kfp.token = "second"  # rotated, as those of service accounts are
    with pytest.raises(ServerRefusedError, match=str(file)):
        api.experiment_id("roboimi")
    file.write_text("second")
    assert api.experiment_id("roboimi") is None


def test_a_namespace_of_somebody_else_is_refused(kfp, failing):
    kfp.multi_user = True
    code, sentence = failing("status", "--namespace", "theirs")
    assert code == ServerRefusedError.exit_code
    assert "'theirs'" in sentence
    assert "namespace of yours" in sentence


def test_a_server_for_several_users_wants_a_namespace(kfp, failing):
    kfp.multi_user = True
    _, sentence = failing("status")
    assert "give yours by --namespace" in sentence


def test_a_server_for_one_user_is_told_no_namespace(kfp, capsys):
    # It would refuse to make an experiment in one.
    assert main(["status", "--namespace", "kubeflow"]) == 0
    api = KfpApi(Connection(kfp.url, namespace="kubeflow"))
    assert api.make_experiment("mine")
    assert "namespace" not in next(iter(kfp.experiments.values()))


def test_a_login_page_is_no_server(kfp, failing):
    kfp.page = b"<html>log in</html>"
    _, sentence = failing("status")
    assert "answers with a page" in sentence


def test_a_failure_inside_the_server_is_its_sentence(kfp, failing):
    kfp.refuse["GET /apis/v2beta1/runs"] = error(500, 13, "Failed to list runs: database is down")
    _, sentence = failing("status")
    assert "HTTP 500" in sentence
    assert "database is down" in sentence


def test_a_proxy_in_front_of_a_dead_server_is_worth_another_try(kfp, failing):
    kfp.refuse["GET /apis/v2beta1/runs"] = error(503, 14, "upstream connect error")
    code, _ = failing("status")
    assert code == ServerUnavailableError.exit_code


def test_a_missing_token_file_is_named(kfp, failing, tmp_path):
    _, sentence = failing("status", "--token-file", str(tmp_path / "none"))
    assert "--token-file" in sentence


def test_runs_come_from_all_pages(kfp):
    names = [f"run-{number}" for number in range(PAGE_SIZE + 3)]
    for name in names:
        kfp.add_run(name, "SUCCEEDED", {})
    api = KfpApi(Connection(kfp.url))
    assert [run.display_name for run in api.runs()] == names[::-1]


def test_a_connection_without_a_host_is_no_connection():
    with pytest.raises(ConfigError):
        Connection("")

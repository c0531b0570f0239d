"""A campaign whose store is a bucket: it runs to its report, finds itself finished, and shows its secret to nobody.

The whole campaign is a test of `-m faults` (some minutes); what it costs nothing to see is seen always.
"""

from pathlib import Path

import pytest

from pipelines.cli import main
from roboimi.errors import StoreAccessError
from roboimi.storage.s3_store import S3Store
from roboimi.vla.config import compose_config
from roboimi.vla.data.dataset_store import push_dataset
from tests.conftest import make_tiny_dataset
from tests.pipelines.local.test_campaign import TINY


def files_with(secret: str, *roots: Path) -> list[str]:
    """The files below `roots` that hold the secret."""
    paths = (path for root in roots for path in root.rglob("*") if path.is_file())
    return [str(path) for path in paths if secret.encode() in path.read_bytes()]


def test_the_compiled_campaign_holds_no_secret(s3_environment, tmp_path, capfd):
    assert main(["compile", "-o", str(tmp_path / "campaign.yaml")]) == 0
    secret = s3_environment["AWS_SECRET_ACCESS_KEY"]
    assert files_with(secret, tmp_path) == []
    assert secret not in "".join(capfd.readouterr())


def test_a_campaign_on_a_missing_bucket_ends_at_once_in_a_sentence(s3_environment, tmp_path, capfd):
    code = main(["run", "--store", "s3://no-such-bucket/store", "--outputs", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    assert code == StoreAccessError.exit_code
    assert err.count("\n") == 1
    assert "no-such-bucket refuses opening the store: the bucket is not there: create it, or correct --store." in err
    assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in out + err


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_whole_campaign_on_a_bucket(bucket, minio_server, s3_environment, tmp_path, run_pipelines):
    secret, uri = s3_environment["AWS_SECRET_ACCESS_KEY"], f"s3://{bucket}/store"
    ref = make_tiny_dataset(tmp_path / "data", episodes=4, frames=24, cameras=compose_config()["task"]["cameras"])
    text = push_dataset(ref, f"s3://{bucket}/datasets/tiny")
    options = ["--store", uri, "--outputs", str(tmp_path / "out"), "--dataset", text, "--only", "projection-96"]
    options += ["--steps", "12", "--eval-episodes", "1"]
    for override in (item for item in TINY if "tracking" not in item):
        options += ["--set", override]
    environment = s3_environment | {"ROBOIMI_CACHE": str(tmp_path / "cache")}
    first = run_pipelines("run", *options, timeout=600, environment=environment)
    assert first.returncode == 0, first.stderr
    # Another machine, whose cache is empty, adopts everything; only the episodes are validated on each machine anew.
    environment["ROBOIMI_CACHE"] = str(tmp_path / "another")
    second = run_pipelines("run", *options, timeout=300, environment=environment)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("found finished") == 4
    store, client = S3Store(uri), minio_server.client()
    (tmp_path / "everything").mkdir()
    for number, item in enumerate(client.list_objects(bucket, recursive=True)):
        client.fget_object(bucket, item.object_name, str(tmp_path / f"everything/{number}"))
    reports = [name for job in store.list("campaigns") for name in store.list(f"campaigns/{job}")]
    assert reports.count("report.html") == 2
    assert secret not in first.stdout + first.stderr + second.stdout + second.stderr
    assert files_with(secret, tmp_path) == []

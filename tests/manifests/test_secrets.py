"""Secrets come from files that the site fills: their names are the pipeline's, git never sees them."""

import base64
import shutil
import subprocess

import pytest
import yaml
from manifests.kustomize import MANIFESTS, kustomize

from pipelines.profiles import load_profile

SECRETS = MANIFESTS / "secrets"


@pytest.fixture
def folder(tmp_path):
    """A copy to fill, without what a developer has filled in."""
    return shutil.copytree(SECRETS, tmp_path / "secrets", ignore=shutil.ignore_patterns("*.env", "*.crt", "*.key"))


def fill(folder, name):
    """Copy the example and give every key a value."""
    example = (folder / name / f"{name}.env.example").read_text()
    (folder / name / f"{name}.env").write_text(example.replace("=", "=of the site"))


def test_every_secret_of_the_profile_is_made_with_the_keys_that_it_reads(folder):
    secrets = load_profile("cluster").cluster.secrets
    assert {secret.name for secret in secrets} == {"roboimi-store", "roboimi-swanlab", "roboimi-hub"}
    for secret in secrets:
        name = secret.name.removeprefix("roboimi-")
        fill(folder, name)
        made = yaml.safe_load(kustomize(folder / name).stdout)
        assert (made["kind"], made["metadata"]["name"]) == ("Secret", secret.name)
        assert set(made["data"]) == set(secret.env)
        assert {base64.b64decode(value).decode() for value in made["data"].values()} == {"of the site"}


def test_the_object_store_gets_its_root_user_its_certificate_and_the_authority(folder):
    fill(folder, "minio")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (folder / "minio" / name).write_text(name)
    made = {item["metadata"]["name"]: item for item in yaml.safe_load_all(kustomize(folder / "minio").stdout)}
    assert set(made["roboimi-minio-root"]["data"]) == {"user", "password"}
    assert made["roboimi-minio-tls"]["type"] == "kubernetes.io/tls"
    assert set(made["roboimi-minio-tls"]["data"]) == {"tls.crt", "tls.key"}
    assert made["roboimi-ca"]["data"] == {"ca.crt": "ca.crt"}


@pytest.mark.parametrize("name", ["store", "swanlab", "hub", "minio"])
def test_a_file_that_is_not_filled_is_named(folder, name):
    done = kustomize(folder / name)
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"/{name}/{'ca.crt' if name == 'minio' else f'{name}.env'}" in done.stderr


@pytest.mark.parametrize("name", ["store/store.env", "hub/hub.env", "minio/minio.env", "minio/tls.key", "minio/ca.crt"])
def test_git_does_not_see_what_the_site_fills_in(name):
    if not (MANIFESTS.parent / ".git").exists():
        pytest.skip("no git here")
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", f"manifests/secrets/{name}"], cwd=MANIFESTS.parent, check=False
    )
    assert ignored.returncode == 0


def test_examples_hold_no_values():
    for path in SECRETS.rglob("*.example"):
        assert all(line.endswith("=") for line in path.read_text().split()), path

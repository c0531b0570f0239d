"""A cluster, a small dataset in its object store, and the tables of what ran."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from roboimi.envs.record import record
from roboimi.vla.data.dataset_store import push_dataset
from roboimi.vla.data.manifest import resolve_dataset
from tests.e2e.site import Site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The cluster; nothing of these tests runs on it afterwards."""
    site = Site.from_environment()
    site.provide()
    yield site
    site.leave_nothing_running()


@pytest.fixture(scope="session")
def dataset(site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight demonstrations of the scripted expert in the cluster's object store: `s3://...@sha256:...`."""
    folder = tmp_path_factory.mktemp("data") / "transfer_cube"
    record(folder, episodes=8)
    return push_dataset(resolve_dataset(str(folder)), f"{site.uri}/datasets/transfer_cube")


@pytest.fixture
def tables(site: Site, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Run ids; what ran in them is printed, and added to `outputs/e2e.md`."""
    runs: list[str] = []
    yield runs
    file = Path(request.config.rootpath) / "outputs" / "e2e.md"
    file.parent.mkdir(exist_ok=True)
    for run_id in runs:
        text = site.table(run_id, request.node.name)
        print(text)
        with open(file, "a") as log:
            log.write(text + "\n")

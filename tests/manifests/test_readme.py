"""The README speaks of what is there."""

import os
import re

import pytest
import yaml
from manifests.kustomize import MANIFESTS, kustomize

TEXT = (MANIFESTS / "README.md").read_text()


@pytest.mark.parametrize("row", re.findall(r"^\| (`.*`) \|", TEXT, flags=re.MULTILINE))
def test_a_folder_of_the_table_is_there(row):
    assert all((MANIFESTS / name).is_dir() for name in re.findall(r"`([^`]+)`", row))


def test_the_site_of_the_readme_builds(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    site = yaml.safe_load(text)
    digest = "sha256:" + 64 * "0"
    site["images"] = [{**image, "digest": digest} for image in site["images"]]
    for key in ("resources", "components"):
        site[key] = [path.replace("../manifests", os.path.relpath(MANIFESTS, tmp_path)) for path in site[key]]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(site))
    done = kustomize(tmp_path)
    assert done.returncode == 0, done.stderr
    images = re.findall(r"image: (.*)", done.stdout)
    assert len(images) == 3
    assert all(image.endswith(digest) for image in images)
    assert "roboimi-internet" not in done.stdout
    assert "https://roboimi-minio:9000" in done.stdout

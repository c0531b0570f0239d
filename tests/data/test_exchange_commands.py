"""Protects `roboimi import` and `roboimi export` as a person types them, and the way to a dataset of the hub."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest

from roboimi.cli import main
from roboimi.vla.data.manifest import resolve_dataset
from tests.conftest import make_tiny_dataset
from tests.data.lerobot_source import LENGTHS, write_lerobot

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_lerobot_dataset_comes_in(tmp_path, capsys):
    root = write_lerobot(tmp_path / "lerobot")
    assert main(["import", "lerobot", str(root), str(tmp_path / "out"), "--image-size", "original"]) == 0
    output = capsys.readouterr()
    ref = resolve_dataset(output.out.strip())
    assert ref.root == tmp_path / "out"
    assert output.err.splitlines() == [
        "3 episodes, 15 frames at 10 Hz (info.json)",
        "state 3, action 2, cameras top, wrist at 32x48",
        "left out: next.reward",
    ]


def test_a_dataset_goes_out_and_comes_back(tmp_path, capsys, monkeypatch):
    ref = make_tiny_dataset(tmp_path / "ours", episodes=2, frames=5, image_size=(64, 64), cameras=["top"])
    assert main(["export", "lerobot", str(ref.root), str(tmp_path / "cube"), "--task", "move the cube"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "cube")
    monkeypatch.chdir(tmp_path)
    assert main(["import", "lerobot", str(tmp_path / "cube"), "--cameras", "top"]) == 0
    back = resolve_dataset(capsys.readouterr().out.strip())
    assert back.root == tmp_path / "datasets" / "cube"
    assert back.contract.image_shape == (256, 256, 3)


@pytest.fixture
def act_folder(tmp_path):
    folder = tmp_path / "act"
    folder.mkdir()
    with h5py.File(folder / "episode_0.hdf5", "w") as file:
        file["action"] = np.zeros((4, 2), np.float32)
        file["observations/qpos"] = np.zeros((4, 2))
        file["observations/images/top"] = np.zeros((4, 48, 64, 3), np.uint8)
    return folder


def test_act_episodes_stay_or_are_converted(act_folder, tmp_path, capsys):
    assert main(["import", "act", str(act_folder), str(tmp_path / "out"), "--fps", "50", "--image-size", "24x32"]) == 0
    assert resolve_dataset(capsys.readouterr().out.strip()).contract.image_shape == (24, 32, 3)
    assert [path.name for path in act_folder.iterdir()] == ["episode_0.hdf5"]
    assert main(["import", "act", str(act_folder), "--fps", "50"]) == 0
    ref = resolve_dataset(capsys.readouterr().out.strip())
    assert (ref.root, ref.contract.image_shape) == (act_folder, (48, 64, 3))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["import", "act", "FOLDER", "--fps", "50", "--image-size", "24x32"], 2, "name OUT"),
        (["import", "act", "FOLDER", "--fps", "50", "--jpeg-colours", "rgb"], 2, "name OUT"),
        (["import", "lerobot", "/nowhere/at/all"], 2, "neither a folder nor a dataset id"),
        (["import", "lerobot", "FOLDER", "--revision", "v3.0"], 2, "leave out --revision"),
        (["import", "lerobot", "somebody/something"], 2, "needs a revision"),
        (["import", "lerobot", "FOLDER", "OUT"], 3, "no meta/info.json"),
        (["export", "lerobot", "FOLDER", "OUT"], 3, "has no MANIFEST.json"),
    ],
)
def test_what_is_wrong_is_one_sentence(act_folder, tmp_path, capsys, arguments, code, sentence):
    places = {"FOLDER": str(act_folder), "OUT": str(tmp_path / "out")}
    assert main([places.get(argument, argument) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["act"]


@pytest.mark.parametrize("size", ["256", "0x4", "axb", "x"])
def test_a_size_that_is_none_is_refused(size, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["import", "act", "a", "b", "--image-size", size])
    assert caught.value.code == 2
    assert f"{size!r} is no size" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """What of the hub a download needs: the commit behind a revision, its files, and the files."""

    root: Path

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        path = self.path.partition("?")[0]
        files = [str(file.relative_to(self.root)) for file in sorted(self.root.rglob("*")) if file.is_file()]
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if path.startswith("/api/datasets/somebody/cube/revision/"):
            siblings = [{"rfilename": file} for file in files]
            self.send({"id": "somebody/cube", "sha": COMMIT, "siblings": siblings}, body)
        elif path.startswith("/api/datasets/somebody/cube/tree/"):
            self.send(
                [
                    {"type": "file", "path": file, "size": (self.root / file).stat().st_size, "oid": "0" * 40}
                    for file in files
                ],
                body,
            )
        elif name in files:
            self.send((self.root / name).read_bytes(), body, ETag=f'"{abs(hash(name)):040x}"')
        else:
            self.send_error(404)

    def send(self, content, body, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        headers |= {"X-Repo-Commit": COMMIT, "Content-Length": str(len(data)), "Content-Type": "application/json"}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def run(arguments, tmp_path, endpoint):
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub
    command = [sys.executable, "-m", "roboimi.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_a_dataset_of_the_hub_is_pinned_to_its_commit(tmp_path):
    Hub.root = write_lerobot(tmp_path / "lerobot")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        arguments = ["import", "lerobot", "somebody/cube", str(tmp_path / "out"), "--revision", "v3.0"]
        result = run(arguments, tmp_path, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert result.returncode == 0, result.stderr
    ref = resolve_dataset(result.stdout.strip())
    assert [entry.frames for entry in ref.manifest.episodes] == list(LENGTHS)
    assert (ref.manifest.source["hub"], ref.manifest.source["revision"]) == ("somebody/cube", COMMIT)


def test_an_unreachable_hub_is_one_sentence_with_both_ways_out(tmp_path):
    arguments = ["import", "lerobot", "somebody/cube", str(tmp_path / "out"), "--revision", "v3.0"]
    result = run(arguments, tmp_path, "http://127.0.0.1:9")
    assert result.returncode == 6
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "HF_ENDPOINT" in result.stderr
    assert "hf download somebody/cube" in result.stderr
    assert not (tmp_path / "out").exists()

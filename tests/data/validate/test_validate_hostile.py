"""Protects the machine that validates: hostile files are refused, open no other file, and kill only their reader."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile_files import KINDS, SECRET, describe
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.validate import pool as pool_module
from roboimi.vla.data.validate.finding import MOST_TEXT, Finding, printable
from roboimi.vla.data.validate.pool import Death, ParserError, Pool, Silence
from roboimi.vla.data.validate.run_episode import EpisodeResult
from roboimi.vla.data.validate.sandbox import clean_environment
from roboimi.vla.data.validate.validate import validate_dataset
from tests.data.validate.robot_data import LIMITS

EPISODE = "episode_000000.hdf5"


def setup_of(ref: DatasetRef, entries=None) -> dict:
    manifest = dataclasses.replace(ref.manifest, episodes=tuple(entries or ref.manifest.episodes))
    return {
        "root": str(ref.root),
        "manifest": manifest.to_dict(),
        "digest": ref.digest,
        "limits": dataclasses.asdict(LIMITS),
    }


@pytest.fixture
def hostile(robot_dataset, tmp_path) -> dict:
    """One hostile file of each kind, each described by the manifest as it is; the setup of a pool."""
    rng = np.random.default_rng(0)
    entries = []
    for index, kind in enumerate(KINDS):
        path = tmp_path / f"episode_{index:06d}.hdf5"
        shutil.copy(robot_dataset.root / EPISODE, path)
        kind.plant(path, rng)
        entry = dataclasses.replace(robot_dataset.manifest.episodes[0], file=path.name)
        entries.append(describe(path, entry))
    return setup_of(dataclasses.replace(robot_dataset, root=tmp_path), entries)


def test_every_kind_of_hostile_file_is_refused(hostile):
    with Pool(hostile, workers=1) as pool:
        jobs = [(kind.name, {"episode": f"episode_{index:06d}.hdf5"}) for index, kind in enumerate(KINDS)]
        outcomes = dict(pool.run(jobs))
    accepted = []
    for name, outcome in outcomes.items():
        result = None if isinstance(outcome, Death) else EpisodeResult.from_dict(outcome)
        if result is not None and not any(finding.severity == "ERR" for finding in result.findings):
            accepted.append(name)
    assert len(outcomes) == len(KINDS)
    assert accepted == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_file_but_the_episodes_is_opened(hostile, tmp_path):
    """Every open that the kernel sees is of an episode, of Python and its libraries, or of the system's own."""
    Path(SECRET).write_bytes(Path(hostile["root"], EPISODE).read_bytes())
    jobs = [{"dataset": hostile}, *({"episode": entry["file"]} for entry in hostile["manifest"]["episodes"])]
    log = tmp_path / "trace.log"
    repository = Path(pool_module.__file__).parents[4]
    strace = (shutil.which("strace"), "-f", "-e", "trace=open,openat,openat2,creat", "-o", str(log))
    done = subprocess.run(
        [*strace, *pool_module.COMMAND],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        env=clean_environment(repository),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    Path(SECRET).unlink()
    opened = set(re.findall(r'open(?:at2?)?\((?:AT_FDCWD, )?"([^"]+)"', log.read_text()))
    answers = [line for line in done.stdout.splitlines() if '"result"' in line or '"error"' in line]
    assert len(answers) == len(jobs) + 1
    assert Path(hostile["root"], EPISODE).as_posix() in opened
    allowed = (hostile["root"], sys.prefix, sys.base_prefix, str(repository), "/proc", "/sys", "/etc/ld.so", "/dev")
    libraries = ("/lib", "/usr/lib", "/usr/share/locale", "/etc/localtime", "/nonexistent")
    strangers = [path for path in opened if path.startswith("/") and not path.startswith((*allowed, *libraries))]
    assert strangers == []
    assert not [path for path in opened if "secret" in path]


def test_the_reader_has_no_credentials_and_no_plugins(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("MINIO_PASSWORD", "canary")
    environment = clean_environment(Path("/somewhere"))
    assert "canary" not in environment.values()
    assert environment["HDF5_PLUGIN_PRELOAD"] == "::"
    assert set(environment) <= {
        *("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "COVERAGE_PROCESS_START"),
        *("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HOME", "HDF5_USE_FILE_LOCKING"),
        *("HDF5_PLUGIN_PRELOAD", "HDF5_PLUGIN_PATH"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"),
    }


def test_the_reader_has_limits():
    script = """
import resource
from roboimi.vla.data.validate.sandbox import MEMORY_BYTES, lock_down
lock_down()
assert resource.getrlimit(resource.RLIMIT_AS)[0] == MEMORY_BYTES
assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 64
try:
    bytearray(MEMORY_BYTES)
    raise SystemExit("memory has no limit")
except MemoryError:
    pass
import tempfile
try:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 10); file.flush()
    raise SystemExit("it can write")
except OSError:
    pass
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_reader_that_is_killed_is_replaced(robot_dataset):
    with Pool(setup_of(robot_dataset), workers=1) as pool:
        assert pool.ask({"episode": EPISODE})["finished"]
        os.kill(pool._parsers[0].pid, signal.SIGKILL)
        assert pool.ask({"episode": EPISODE})["finished"]


def test_a_reader_that_hangs_is_ended(robot_dataset):
    with Pool(setup_of(robot_dataset), workers=1, silence_s=1.0) as pool:
        assert pool.ask({"episode": EPISODE})["finished"]
        pid = pool._parsers[0].pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Silence, match="no sign of life"):
            pool.ask({"episode": EPISODE})
        assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Puts a program in the place of the reader: it answers twice and then does as told."""

    def put(then: str) -> None:
        program = tmp_path / "reader.py"
        program.write_text(
            "import os, signal, sys\n"
            "print('{\"result\": 1}', flush=True); sys.stdin.readline(); print('{\"result\": 1}', flush=True)\n"
            f"for line in sys.stdin:\n    {then}\n"
        )
        monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, str(program)))

    return put


@pytest.mark.parametrize(
    ("then", "what"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os._exit(3)", "exit code 3"),
        ("print('nonsense', flush=True)", "nonsense"),
        ("print('[1]', flush=True)", "nonsense"),
        ('print(\'{"result": {"findings": 3}}\', flush=True)', "nonsense"),
    ],
)
def test_the_death_of_a_reader_is_a_finding(small_robot_dataset, stand_in, then, what):
    stand_in(then)
    report = validate_dataset(small_robot_dataset, LIMITS)
    assert {finding.code for finding in report.findings if finding.episode} == {"E01-unopenable"}
    assert len(report.errors) == 3
    assert all(what in finding.what for finding in report.errors)


def test_a_reader_that_cannot_start_is_one_sentence(robot_dataset, monkeypatch):
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-c", "raise SystemExit('no h5py')"))
    with Pool(setup_of(robot_dataset), workers=1) as pool, pytest.raises(ParserError, match="no h5py"):
        pool.ask({"episode": EPISODE})


def test_an_episode_that_is_a_link_is_not_followed(small_robot_dataset, tmp_path):
    path = small_robot_dataset.root / EPISODE
    path.rename(tmp_path / "elsewhere.hdf5")
    path.symlink_to(tmp_path / "elsewhere.hdf5")
    report = validate_dataset(small_robot_dataset, LIMITS)
    assert [finding.code for finding in report.errors] == ["E02-content-hash"]
    assert EPISODE in report.unfinished


@settings(deadline=None)
@given(st.text(max_size=1000))
def test_no_name_can_forge_a_line_or_command_a_terminal(name):
    finding = Finding("E04-names", "ERR", name, name, name, None, name)
    shown = finding.sentence
    assert len(shown.splitlines()) == 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", shown)
    assert len(printable(name)) <= 12 * MOST_TEXT


def test_hostile_file_names_in_the_folder_are_shown_as_codes(small_robot_dataset):
    (small_robot_dataset.root / "episode_1\n\x1b[2Jpassed.hdf5").write_bytes(b"")
    (finding,) = validate_dataset(small_robot_dataset, LIMITS).errors
    assert finding.episode == "episode_1\\u{a}\\u{1b}[2Jpassed.hdf5"

"""Protects what a person is told: Hydra composes the settings, and takes no warning of the library away."""

import logging
import sys

import pytest

from roboimi.vla.hydra_command import run_hydra_command

log = logging.getLogger("roboimi.known.before")


@pytest.mark.parametrize(
    ("name", "arguments"), [("eval_vla", ["checkpoint=trainings/key"]), ("train_vla", ["dataset=data"])]
)
def test_warnings_are_said_within_a_command_and_after_it(name, arguments, monkeypatch, caplog, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    seen = []

    def work(config):
        seen.append(config)
        log.warning("waiting for another one")

    run_hydra_command(name, work)
    assert seen
    log.warning("and afterwards")
    assert "waiting for another one" in caplog.text
    assert "and afterwards" in caplog.text
    assert not list(tmp_path.iterdir())

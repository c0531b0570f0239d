"""Protects the preflight: every fault has its own class, the cheapest check comes first, a policy really acts."""

import pytest
import torch

from roboimi.errors import PolicyOutputError, RenderError
from roboimi.vla import preflight as module
from roboimi.vla.config import TrainRun
from roboimi.vla.preflight import (
    POLICY_STEPS,
    CodeRevisionError,
    NoCudaError,
    SoftwareRendererError,
    check_cuda,
    check_renderer,
    check_revision,
    preflight,
    run_policy_steps,
)
from tests.conftest import make_tiny_dataset

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
OVERRIDES = ("head=small", "head.n_layer=1")


@pytest.fixture(scope="module")
def ref(tmp_path_factory):
    cameras = TrainRun.from_overrides([], dataset="none", encoder="standin").task.cameras
    return make_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", frames=4, cameras=cameras)


def test_another_revision_than_the_submitted_one():
    assert check_revision("abc", "abc") == "abc"
    assert check_revision("", "abc") == "abc"
    with pytest.raises(CodeRevisionError, match=r"holds the code revision abc-dirty and .* submitted with abc"):
        check_revision("abc", "abc-dirty")
    with pytest.raises(CodeRevisionError, match="unknown"):
        check_revision("abc", None)


def test_a_software_renderer_is_a_fault_of_its_own():
    assert check_renderer("NVIDIA H200/PCIe/SSE2") == "NVIDIA H200/PCIe/SSE2"
    with pytest.raises(SoftwareRendererError, match="in software here") as caught:
        check_renderer("llvmpipe (LLVM 15.0.6, 256 bits)")
    assert isinstance(caught.value, RenderError)
    assert caught.value.failure_class == "software-gl"


@without_cuda
def test_no_cuda_is_said_with_the_build():
    with pytest.raises(NoCudaError, match=f"torch {torch.__version__}".replace("+", r"\+")) as caught:
        check_cuda()
    assert caught.value.failure_class == "no-cuda"


@without_cuda
def test_the_cheapest_check_comes_first(ref, monkeypatch):
    monkeypatch.setenv("ROBOIMI_REVISION", "abc")
    with pytest.raises(CodeRevisionError):
        preflight(ref, "standin", OVERRIDES, "def")
    with pytest.raises(NoCudaError):
        preflight(ref, "standin", OVERRIDES, "abc")


def test_every_fault_has_its_own_class():
    kinds = [CodeRevisionError, NoCudaError, SoftwareRendererError, RenderError, PolicyOutputError]
    assert len({kind.failure_class for kind in kinds}) == len(kinds)


def test_an_untrained_policy_acts_on_images(ref, tiny_tower):
    run = TrainRun.from_overrides(OVERRIDES, dataset=ref.text, encoder=str(tiny_tower))
    assert run_policy_steps(run, ref, device="cpu") > 0


def test_it_acts_for_as_many_steps_as_promised(ref, tiny_tower, monkeypatch):
    monkeypatch.setattr(module, "POLICY_STEPS", 2 * POLICY_STEPS)
    predicted = []
    from roboimi.vla.rollouts.agent_policy import AgentPolicy

    predict = AgentPolicy.predict
    monkeypatch.setattr(AgentPolicy, "predict", lambda *given: predicted.append(1) or predict(*given))
    run = TrainRun.from_overrides(OVERRIDES, dataset=ref.text, encoder=str(tiny_tower))
    run_policy_steps(run, ref, device="cpu")
    assert len(predicted) * run.config["num_action_steps"] == 2 * POLICY_STEPS


def test_an_environment_that_breaks(ref, tiny_tower, monkeypatch):
    def broken(frame, size):
        raise ValueError("no such size")

    monkeypatch.setattr("roboimi.vla.rollouts.episode.resize_frame", broken)
    run = TrainRun.from_overrides(OVERRIDES, dataset=ref.text, encoder=str(tiny_tower))
    with pytest.raises(PolicyOutputError, match="could not act in roboimi/TransferCube-v0: ValueError: no such size"):
        run_policy_steps(run, ref, device="cpu")

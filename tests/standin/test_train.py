"""Protects the training of the stand-in: what its loss counts, reproducible bytes, and a command that leaves loadable
weights or nothing."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers import SiglipVisionModel

from roboimi.errors import ConfigError, NonFiniteError
from roboimi.storage.keys import sha256_file
from roboimi.vla.standin import card
from roboimi.vla.standin.__main__ import main
from roboimi.vla.standin.tower import initial_tower
from roboimi.vla.standin.train import CubeHeads, TrainSettings, learning_rate, patch_shares, train_tower

SHORT = TrainSettings(steps=3, batch_scenes=4)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_patch_shares_are_those_of_the_cube_pixels():
    images = np.full((2, 64, 64, 3), 90, np.uint8)
    images[0, 30:38, 40:48] = (
        250,
        20,
        20,
    )  # rows 30, 31 in the upper right patch, rows 32 to 37 in the lower right one
    images[1, :2, :2] = (250, 20, 20)  # four pixels: too few to see
    shares = patch_shares(images, patch=32)
    np.testing.assert_allclose(shares[0], [0, 0.25, 0, 0.75])
    np.testing.assert_allclose(shares[1], 0)


def test_a_view_that_does_not_see_the_cube_is_not_asked():
    torch.manual_seed(0)
    heads = CubeHeads(width=8, views=2)
    for head in heads.view:
        torch.nn.init.normal_(head.weight)
    pooled = torch.randn(3, 2, 8, requires_grad=True)
    tokens = torch.randn(3, 2, 4, 8, requires_grad=True)
    share = torch.full((3, 2, 4), 0.25)
    share[1, 0] = 0
    heads(pooled, tokens, torch.randn(3, 3), share, SHORT).backward()
    assert not tokens.grad[1, 0].any()
    assert tokens.grad[1, 1].any()
    assert not pooled.grad[1, 0].any()  # the fused head begins at zero
    assert pooled.grad[0, 0].any()


def test_patches_without_the_cube_are_not_asked_for_its_position():
    torch.manual_seed(0)
    heads = CubeHeads(width=8, views=1)
    tokens = torch.randn(2, 1, 4, 8, requires_grad=True)
    share = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(2, 1, 4)
    settings = dataclasses.replace(SHORT, patch_weight=0.0)
    heads(torch.randn(2, 1, 8), tokens, torch.randn(2, 3), share, settings).backward()
    assert tokens.grad[:, :, 1].any()
    assert not tokens.grad[:, :, [0, 2, 3]].any()


def test_learning_rate_rises_and_falls():
    settings = TrainSettings(steps=100, warmup_share=0.1, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_the_same_seed_gives_the_same_weights(few_scenes):
    first, losses = train_tower(few_scenes, SHORT)
    torch.manual_seed(123)  # the global state must not matter
    second, again = train_tower(few_scenes, SHORT)
    other, _ = train_tower(few_scenes, dataclasses.replace(SHORT, seed=1))
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.probe, other.head.probe)


def test_training_learns_the_scenes_it_is_given(few_scenes):
    _, losses = train_tower(few_scenes, TrainSettings(steps=24, batch_scenes=6))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_a_loss_that_is_not_finite_ends_the_training(few_scenes):
    broken = dataclasses.replace(few_scenes, cube=np.full_like(few_scenes.cube, np.nan))
    with pytest.raises(NonFiniteError, match="step 0"):
        train_tower(broken, SHORT)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="positive"):
        TrainSettings(steps=0)


def test_the_command_writes_weights_that_load_and_a_card_that_fits(tmp_path, capsys):
    out = tmp_path / "tower"
    arguments = ["train", "--out", str(out), "--scenes", "32", "--steps", "2", "--probe-scenes", "128"]
    arguments += ["--cameras", "front", "--renders", str(tmp_path / "renders")]
    assert main(arguments) == 0
    model = SiglipVisionModel.from_pretrained(out)
    assert model(pixel_values=torch.zeros(1, 3, 256, 256)).pooler_output.shape == (1, 192)
    card = (out / "README.md").read_text()
    assert sha256_file(out / "model.safetensors") in card
    assert "--scenes 32 --steps 2 --probe-scenes 128 --cameras front" in card
    assert "all views, all scenes" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["renders", "tower"]

    # A second run would overwrite: refused before any time is spent, and the weights stay.
    digest = sha256_file(out / "model.safetensors")
    assert main(arguments) == ConfigError.exit_code
    said = capsys.readouterr()
    assert "not an empty folder" in said.err
    assert "rendered" not in said.out
    assert sha256_file(out / "model.safetensors") == digest


def test_a_card_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    facts = card.CardFacts(SHORT, ("front",), 1, 1, 1.0, "command", probe=[])
    monkeypatch.setattr(card, "format_table", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        card.write_tower(initial_tower(0), facts, tmp_path / "tower")
    assert not list(tmp_path.iterdir())

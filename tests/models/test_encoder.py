"""Names of vision towers: what is accepted, what is refused in one sentence, and digests that follow the weights."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from roboimi.errors import EncoderError
from roboimi.vla.models.encoder import load_vision_model, random_vision_model
from roboimi.vla.models.encoder_spec import EncoderSpec
from tests.tiny_tower import TINY

HUB = "google/siglip2-base-patch16-256"


@pytest.fixture
def folder(tmp_path):
    """A tower on disk, as `save_pretrained` writes it."""
    random_vision_model(SiglipVisionConfig(**TINY), seed=0).save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


def test_a_pinned_repository():
    revision = "0123456789abcdef0123456789abcdef01234567"
    spec = EncoderSpec.parse(f"{HUB}@{revision}")
    assert (spec.name, spec.revision, spec.is_standin) == (HUB, revision, False)
    assert spec.digest != EncoderSpec.parse(f"{HUB}@{revision[::-1]}").digest
    assert HUB in spec.description


@pytest.mark.parametrize("text", [HUB, f"{HUB}@main", f"{HUB}@{'a' * 39}", f"{HUB}@"])
def test_a_repository_without_a_revision_is_refused(text):
    with pytest.raises(EncoderError, match="not pinned"):
        EncoderSpec.parse(text)


@pytest.mark.parametrize("text", ["siglip", "", "a b/c", "standing"])
def test_an_unknown_name_is_refused(text):
    with pytest.raises(EncoderError, match="Unknown encoder"):
        EncoderSpec.parse(text)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"no config\.json"):
        EncoderSpec.parse(str(tmp_path / "nothing"))


def test_a_folders_digest_follows_its_bytes(folder):
    before = EncoderSpec.parse(str(folder)).digest
    assert EncoderSpec.parse(str(folder)).digest == before
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert EncoderSpec.parse(str(folder)).digest != before


def test_a_folder_is_loaded_frozen_with_its_weights(folder):
    model = load_vision_model(str(folder))
    expected = random_vision_model(SiglipVisionConfig(**TINY), seed=0)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert load_vision_model(str(folder), "bfloat16").dtype == torch.bfloat16


def test_the_tower_of_a_whole_siglip_model_is_loaded(tmp_path):
    text = {
        "vocab_size": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    whole = SiglipModel(SiglipConfig(text_config=text, vision_config=TINY))
    whole.save_pretrained(tmp_path)
    model = load_vision_model(str(tmp_path))
    torch.testing.assert_close(model.state_dict(), whole.vision_model.state_dict(), rtol=0, atol=0)


def test_a_folder_without_the_weights_is_refused_not_filled_with_random_ones(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(EncoderError, match="no SigLIP vision tower"):
        load_vision_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="cannot be read"):
        load_vision_model(str(folder))


def test_a_tower_without_pooling_head_is_refused(tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**TINY, vision_use_head=False)).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="no pooling head"):
        load_vision_model(str(tmp_path))


def test_the_standin_is_the_same_every_time_and_says_what_it_is():
    spec = EncoderSpec.parse("standin")
    assert spec.is_standin
    assert spec.description.startswith("stand-in (")
    assert "siglip2" not in spec.description.lower()
    torch.manual_seed(1)
    first = load_vision_model(spec).state_dict()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    torch.testing.assert_close(load_vision_model("standin").state_dict(), first, rtol=0, atol=0)
    torch.testing.assert_close(torch.random.get_rng_state(), state, rtol=0, atol=0)


def test_loading_a_folder_prints_nothing(capfd):
    load_vision_model("standin")
    assert capfd.readouterr() == ("", "")


def test_an_unreachable_hub_names_both_ways_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"a local folder .* encoder=standin\.$"):
        load_vision_model(f"{HUB}@{'0' * 40}")


def test_names_and_digests_need_no_torch():
    code = (
        "import sys; from roboimi.vla.models.encoder_spec import EncoderSpec; EncoderSpec.parse('standin');"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

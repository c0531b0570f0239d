"""The visual backbone: shapes, views on their own, the frozen tower, resize attributes, cached features."""

import pytest
import torch
from transformers import SiglipVisionConfig

from roboimi.errors import ConfigError, EncoderError
from roboimi.vla.models.backbones import BlindBackbone, PrivilegedStateBackbone, SigLIP2DiffusionBackbone
from roboimi.vla.models.encoder import random_vision_model

B, TO, V, D = 2, 2, 3, 24


@pytest.fixture
def tower():
    """A tiny real SigLIP tower for 256 x 256 images."""
    sizes = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return random_vision_model(SiglipVisionConfig(image_size=256, patch_size=64, **sizes), seed=0)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (B, TO, V, 256, 256, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("width", [96, 192])
def test_output_is_the_projections_of_all_views(tower, images, width):
    backbone = SigLIP2DiffusionBackbone(per_view_output_dim=width, vision_model=tower)
    output = backbone({"images": images})
    assert output.shape == (B, TO, V * width)
    assert backbone.output_dim == V * width
    assert output.requires_grad


def test_images_keep_their_size_in_the_dataset_and_are_resized_in_rollouts(tower):
    backbone = SigLIP2DiffusionBackbone(vision_model=tower)
    assert backbone.dataset_image_resize_shape is None
    assert backbone.eval_image_resize_shape == (256, 256)
    assert backbone.needs == "images"


@pytest.mark.parametrize("view", range(V))
def test_each_view_decides_its_own_slice_and_no_other(tower, images, view):
    backbone = SigLIP2DiffusionBackbone(per_view_output_dim=8, vision_model=tower)
    before = backbone({"images": images})
    images[:, :, view] = 255 - images[:, :, view]
    changed = (backbone({"images": images}) - before).abs().amax(dim=(0, 1)).view(V, 8).amax(-1)
    assert changed[view] > 1e-4
    assert changed[[v for v in range(V) if v != view]].max() < 1e-6


def test_the_tower_is_shared_and_the_projections_are_not(tower, images):
    images[:, :, 1] = images[:, :, 0]
    backbone = SigLIP2DiffusionBackbone(per_view_output_dim=8, vision_model=tower)
    pooled = backbone.encode_images(images)
    torch.testing.assert_close(pooled[:, :, 0], pooled[:, :, 1])
    views = backbone({"images": images}).view(B, TO, V, 8)
    assert (views[:, :, 0] - views[:, :, 1]).abs().max() > 1e-3


def test_pixels_are_normalised_and_pooled_as_the_tower_expects(tower, images):
    """pooler_output of (x / 255 - 0.5) / 0.5, one image at a time."""
    backbone = SigLIP2DiffusionBackbone(vision_model=tower)
    pooled = backbone.encode_images(images)
    assert pooled.shape == (B, TO, V, D)
    pixels = (images[1, 0, 2].permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(pooled[1, 0, 2], tower(pixel_values=pixels).pooler_output[0], rtol=0, atol=1e-5)


def test_the_tower_stays_frozen_and_in_eval(tower, images):
    backbone = SigLIP2DiffusionBackbone(vision_model=tower).train()
    assert backbone.training
    assert not any(module.training for module in backbone.vision_model.modules())
    backbone({"images": images}).square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in tower.parameters())
    assert all(p.grad.abs().max() > 0 for p in backbone.view_projectors.parameters())
    trainable = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert all(name.startswith("view_projectors.") for name in trainable)
    assert len(trainable) == 2 * V


def test_cached_features_give_what_images_give_without_a_tower(tower, images):
    online = SigLIP2DiffusionBackbone(vision_model=tower)
    features = online.encode_images(images)
    cached = SigLIP2DiffusionBackbone(feature_dim=D)
    cached.view_projectors.load_state_dict(online.view_projectors.state_dict())
    torch.testing.assert_close(cached({"features": features}), online({"images": images}), rtol=0, atol=0)
    assert cached({"features": features.half()}).dtype == torch.float32
    with pytest.raises(EncoderError, match="no vision tower"):
        cached({"images": images})
    cached.attach_vision_model(tower)
    torch.testing.assert_close(cached({"images": images}), online({"images": images}), rtol=0, atol=0)


def test_a_bfloat16_tower_is_projected_in_float32(tower, images):
    backbone = SigLIP2DiffusionBackbone(vision_model=tower.to(torch.bfloat16))
    assert backbone.encode_images(images).dtype == torch.bfloat16
    assert backbone({"images": images}).dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(B, TO, V, 480, 640, 3, dtype=torch.uint8), torch.zeros(B, TO, V, 256, 256, 3)],
    ids=["frame size of the environment", "float pixels"],
)
def test_images_that_were_not_resized_are_refused(tower, wrong):
    with pytest.raises(EncoderError, match="resize_frame"):
        SigLIP2DiffusionBackbone(vision_model=tower)({"images": wrong})


def test_another_number_of_views_is_refused(tower, images):
    with pytest.raises(EncoderError, match="reads 3 views"):
        SigLIP2DiffusionBackbone(vision_model=tower)({"images": images[:, :, :2]})


def test_a_tower_for_another_image_size_is_refused(tower):
    with pytest.raises(ConfigError, match=r"set it to \[256, 256\]"):
        SigLIP2DiffusionBackbone(vision_model=tower, eval_image_resize_shape=(224, 224))


def test_a_tower_of_another_width_is_refused(tower):
    with pytest.raises(ConfigError, match="gives 24 features"):
        SigLIP2DiffusionBackbone(feature_dim=768).attach_vision_model(tower)


def test_the_standin_is_a_tower_like_any_other(images):
    backbone = SigLIP2DiffusionBackbone("standin", per_view_output_dim=8)
    pooled = backbone.encode_images(images)
    assert pooled.shape == (B, TO, V, backbone.feature_dim)
    assert torch.isfinite(pooled).all()


def test_reference_backbones():
    state = torch.zeros(B, TO, 14)
    assert BlindBackbone()({"state": state}).shape == (B, TO, 0)
    pose = torch.randn(B, TO, 7)
    assert PrivilegedStateBackbone(7)({"environment_state": pose}) is pose
    with pytest.raises(ConfigError, match="needs an environment state"):
        PrivilegedStateBackbone(0)

"""Visual condition: each view alone through one shared frozen SigLIP2 tower, then its own linear projection.

    images (B, To, V, 256, 256, 3) uint8 -> tower -> pooler_output (B, To, V, D) -> V x Linear(D, d) -> (B, To, V * d)

As the tower is frozen and images are not augmented, pooler_output can be computed once per dataset; a batch then holds
`features` (B, To, V, D) instead of images and the tower is not needed at all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from roboimi.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    # Not at run time: importing it takes seconds, and a policy that reads cached features or no image never needs it.
    from transformers import SiglipVisionModel


class SigLIP2DiffusionBackbone(nn.Module):
    """Frozen shared tower, trainable per-view projections.

    Args:
        encoder: name of the tower, as in `EncoderSpec.parse`; loaded if neither `vision_model` nor `feature_dim` is
            given.
        num_views: V.
        per_view_output_dim: d.
        vision_model: the tower, already loaded.
        feature_dim: D, for a backbone without a tower that reads cached features only.
        dtype: of the tower's weights (`float32`, `bfloat16`); None: as stored.
        dataset_image_resize_shape: None: the dataset's images are taken at their native 256 x 256.
        eval_image_resize_shape: (H, W) that rollout frames must be resized to before they come here.
        needs: `images`; for readers of the configuration.

    Attributes:
        output_dim: V * d, per observation step.
        feature_dim: D, the tower's `config.hidden_size`.

    Raises:
        ConfigError: sizes that are not positive, or a tower of another width than `feature_dim`.
        EncoderError: the tower cannot be loaded.
    """

    def __init__(
        self,
        encoder: str = "",
        num_views: int = 3,
        per_view_output_dim: int = 96,
        vision_model: "SiglipVisionModel | None" = None,
        feature_dim: int | None = None,
        dtype: str | None = None,
        dataset_image_resize_shape: Sequence[int] | None = None,
        eval_image_resize_shape: Sequence[int] = (256, 256),
        needs: str = "images",
    ):
        super().__init__()
        if num_views < 1 or per_view_output_dim < 1:
            raise ConfigError(
                f"backbone.num_views={num_views} and per_view_output_dim={per_view_output_dim} must be positive."
            )
        if vision_model is None and feature_dim is None:
            from roboimi.vla.models.encoder import load_vision_model

            vision_model = load_vision_model(encoder, dtype)
        self.vision_model: SiglipVisionModel | None = None
        self.needs = needs
        self.num_views = num_views
        self.per_view_output_dim = per_view_output_dim
        self.output_dim = num_views * per_view_output_dim
        self.feature_dim = vision_model.config.hidden_size if feature_dim is None else feature_dim
        self.dataset_image_resize_shape = _shape(dataset_image_resize_shape)
        self.eval_image_resize_shape = _shape(eval_image_resize_shape)
        self.view_projectors = nn.ModuleList(nn.Linear(self.feature_dim, per_view_output_dim) for _ in range(num_views))
        if vision_model is not None:
            self.attach_vision_model(vision_model)

    def attach_vision_model(self, vision_model: "SiglipVisionModel") -> None:
        """Give a backbone that was built for cached features its tower, frozen; needed before images can be encoded.

        Raises:
            ConfigError: the tower is not D wide, or takes images of another size than rollouts resize to.
        """
        width, size = vision_model.config.hidden_size, vision_model.config.image_size
        if width != self.feature_dim:
            raise ConfigError(
                f"The vision tower gives {width} features and the projectors read {self.feature_dim}: "
                "use the encoder that the features were made with."
            )
        if self.eval_image_resize_shape != (size, size):
            raise ConfigError(
                f"backbone.eval_image_resize_shape={self.eval_image_resize_shape} does not fit a vision tower for "
                f"{size} x {size} images: set it to [{size}, {size}]."
            )
        from roboimi.vla.models.encoder import freeze

        self.vision_model = freeze(vision_model)

    def train(self, mode: bool = True) -> "SigLIP2DiffusionBackbone":
        """As usual, but the frozen tower stays in eval mode."""
        super().train(mode)
        if self.vision_model is not None:
            self.vision_model.eval()
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        """Pooled features of single images.

        Args:
            images: (..., H, W, 3) uint8 RGB, H x W as `eval_image_resize_shape`.

        Returns:
            (..., D) in the tower's dtype, without graph.

        Raises:
            EncoderError: no tower, or images of another size or type.
        """
        if self.vision_model is None:
            raise EncoderError(
                "This policy was built for cached features and has no vision tower to encode images with: "
                "attach one with attach_vision_model."
            )
        height, width = self.eval_image_resize_shape
        if images.dtype != torch.uint8 or images.shape[-3:] != (height, width, 3):
            raise EncoderError(
                f"The encoder takes uint8 images of shape (..., {height}, {width}, 3) and got {images.dtype} "
                f"{tuple(images.shape)}: resize rollout frames with roboimi.envs.images.resize_frame."
            )
        pixels = images.flatten(0, -4).permute(0, 3, 1, 2)  # (n, 3, H, W)
        pixels = pixels.to(torch.float32).div_(127.5).sub_(1.0)  # (x / 255 - 0.5) / 0.5
        with torch.no_grad():  # not inference_mode: its tensors could not be saved for the projectors' backward pass
            pooled = self.vision_model(pixel_values=pixels.to(self.vision_model.dtype)).pooler_output
        return pooled.view(*images.shape[:-3], -1)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The visual condition.

        Args:
            batch: `features` (B, To, V, D), or `images` (B, To, V, H, W, 3) uint8.

        Returns:
            (B, To, V * d).

        Raises:
            EncoderError: another number of views, or what `encode_images` raises.
        """
        features = batch["features"] if "features" in batch else self.encode_images(batch["images"])
        if features.shape[-2:] != (self.num_views, self.feature_dim):
            raise EncoderError(
                f"The backbone reads {self.num_views} views of {self.feature_dim} features and got "
                f"{tuple(features.shape)}: the dataset's cameras must be those of the configuration."
            )
        features = features.to(self.view_projectors[0].weight.dtype)  # half-precision features: projected in full
        views = [project(features[:, :, v]) for v, project in enumerate(self.view_projectors)]
        return torch.cat(views, dim=-1)


def _shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(int(n) for n in shape)

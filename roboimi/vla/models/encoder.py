"""Loads the frozen vision tower: a `SiglipVisionModel`, in eval mode, without gradients.

SigLIP2's fixed-resolution checkpoints are of model type `siglip`, so their class is SiglipVisionModel; the Siglip2
classes are for the variable-resolution checkpoints.
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging

from roboimi.errors import EncoderError
from roboimi.vla.models.encoder_spec import STANDIN_NAME, EncoderSpec


def load_vision_model(spec: EncoderSpec | str, dtype: torch.dtype | str | None = None) -> SiglipVisionModel:
    """Load the tower that `spec` names.

    Args:
        spec: an `EncoderSpec`, or the text of one.
        dtype: of the weights; None: as stored.

    Returns:
        The tower, `requires_grad_(False)` and `eval()`.

    Raises:
        EncoderError: the hub cannot be reached, or what is there is no SigLIP vision tower with a pooling head.
    """
    spec = EncoderSpec.parse(spec) if isinstance(spec, str) else spec
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return freeze(_from_pretrained(spec, dtype))


def random_vision_model(config: SiglipVisionConfig, seed: int) -> SiglipVisionModel:
    """A tower with random weights, the same for the same seed; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SiglipVisionModel(config)


def freeze(model: SiglipVisionModel) -> SiglipVisionModel:
    """No gradients, eval mode."""
    return model.requires_grad_(False).eval()


def _from_pretrained(spec: EncoderSpec, dtype: torch.dtype | None) -> SiglipVisionModel:
    options = {} if dtype is None else {"dtype": dtype}
    source = spec.name if spec.folder is None else str(spec.folder)
    if spec.revision is not None:
        options["revision"] = spec.revision
    try:
        # A download deserves its bar; reading a file of ours does not.
        with _no_progress_bar() if spec.folder is not None else contextlib.nullcontext():
            model, report = SiglipVisionModel.from_pretrained(source, output_loading_info=True, **options)
    except OSError as error:
        if spec.folder is not None:
            raise EncoderError(f"The encoder in {spec.folder} cannot be read: {_first_line(error)}") from error
        raise EncoderError(
            f"The encoder {spec.name} cannot be fetched from the Hugging Face hub or its cache "
            f"({_first_line(error)}): give a local folder with its weights as the encoder, "
            f"or the offline stand-in, encoder={STANDIN_NAME}."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise EncoderError(f"{source} holds no SigLIP vision tower: {_first_line(error)}") from error
    if report["missing_keys"] or report["mismatched_keys"]:  # transformers would leave these random, with a warning
        lacking = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
        raise EncoderError(
            f"{source} holds no SigLIP vision tower: {len(lacking)} of its weights are missing or of another shape, "
            f"the first is {lacking[0]}; choose another encoder."
        )
    if not model.config.vision_use_head:
        raise EncoderError(f"The tower {source} has no pooling head, so no pooler_output: choose another encoder.")
    return model


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

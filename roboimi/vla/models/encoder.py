"""Loads the frozen vision tower: a `SiglipVisionModel`, in eval mode, without gradients.

A repository of the Hugging Face hub is looked for in the store of staged weights first (`staged_weights`); only what is
not there comes from the hub or its cache on this machine.

SigLIP2's fixed-resolution checkpoints are of model type `siglip`, so their class is SiglipVisionModel; the Siglip2
classes are for the variable-resolution checkpoints.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging

from roboimi.errors import EncoderError
from roboimi.vla.models.encoder_spec import STANDIN_NAME, EncoderSpec
from roboimi.vla.models.staged_weights import fetch_weights, find_staged


def load_vision_model(spec: EncoderSpec | str, dtype: torch.dtype | str | None = None) -> SiglipVisionModel:
    """Load the tower that `spec` names.

    Args:
        spec: an `EncoderSpec`, or the text of one.
        dtype: of the weights; None: as stored.

    Returns:
        The tower, `requires_grad_(False)` and `eval()`.

    Raises:
        EncoderError: the weights are neither staged nor to be had from the hub, or are damaged, or what is there is no
            SigLIP vision tower with a pooling head.
        StoreError: the store of staged weights cannot be read.
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
    folder = spec.folder or _staged_folder(spec)
    source = spec.name if folder is None else str(folder)
    if folder is None:
        options["revision"] = spec.revision
    else:
        options["local_files_only"] = True
    try:
        # A download deserves its bar; reading a file of ours does not.
        with _no_progress_bar() if folder is not None else contextlib.nullcontext():
            model, report = SiglipVisionModel.from_pretrained(source, output_loading_info=True, **options)
    except OSError as error:
        if folder is not None:
            raise EncoderError(f"The encoder in {folder} cannot be read: {_first_line(error)}") from error
        raise EncoderError(
            f"The encoder {spec.name} cannot be fetched from the Hugging Face hub or its cache "
            f"({_first_line(error)}): stage its weights where there is a network (roboimi encoder stage "
            f"{spec.name}@{spec.revision} STORE), or give a local folder with them as the encoder, or the offline "
            f"stand-in, encoder={STANDIN_NAME}."
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


def _staged_folder(spec: EncoderSpec) -> Path | None:
    """A folder with the staged and verified weights of a repository, or None."""
    staged = find_staged(spec)
    return fetch_weights(*staged, spec) if staged is not None else None


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

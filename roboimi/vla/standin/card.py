"""The folder that a training leaves: weights as `from_pretrained` reads them, and the card that says what they are."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import SiglipVisionModel

from roboimi.errors import ConfigError
from roboimi.storage.keys import sha256_file
from roboimi.vla.standin.probe import ProbeRow, format_table
from roboimi.vla.standin.scenes import BLOCK, KINDS, PER_BLOCK
from roboimi.vla.standin.train import TrainSettings

WEIGHTS = "model.safetensors"

_CARD = """\
---
license: apache-2.0
library_name: transformers
---
# Stand-in vision tower

A tiny vision tower of SigLIP's architecture, {parameters:.2f} M parameters, so that a campaign on a machine without hub
and GPU means something. **It is not SigLIP2** and knows nothing of the world: it was trained from scratch, only on
renders of this project's transfer-cube task, to say where the cube is. Use it for that task, those cameras, and for
nothing else.

- Class: `transformers.SiglipVisionModel` with its pooling head; `pooler_output` is {width} wide. Input: 256 x 256 RGB,
  `(x / 255 - 0.5) / 0.5`; patches of {patch} pixels, {layers} layers, {heads} attention heads.
- Data: {scenes} scenes of {views} views ({cameras}), rendered by the task's environment and
  resized as for a policy. In {teleported:.0%} of them the cube is teleported to a random pose, independent of the arms;
  the others are frames of noisy expert episodes.
- Training: supervised, {steps} steps of {batch} scenes, AdamW, {seconds:.0f} s of wall time on {threads} thread(s),
  rendering not included. Losses: the cube's position from linear heads on `pooler_output` (each view; all views), and
  on the patch tokens; the heads are not kept.
- Command: `{command}`
- Seed: {seed}. The same command on the same machine gives the same bytes.
- `{weights}`: {megabytes:.2f} MB, float32, SHA-256 `{digest}`.
- Speed: {milliseconds:.1f} ms an image in batches of 48, one thread of the CPU that trained it.
- Licence: Apache-2.0, as the project. The renders show the robot model of gym-aloha (Apache-2.0).

## What it sees

Ridge regression from the frozen `pooler_output` to the cube's position, {probe_scenes} unseen scenes, a quarter
of them held out. Single views count only the scenes in which that view sees the cube. "Chance" always answers the mean.

{table}

## What it is not good for

Nearly all of what its feature says is the cube's position, which fits into any projection. So it shows that a pipeline
is sound and that a policy learns to act on what it sees; it cannot tell how wide a projection SigLIP2 needs. The probe
above holds for these cameras, this lighting and this cube: where one of them changes, train it again.
"""


@dataclass(frozen=True)
class CardFacts:
    """What the card says beyond the model itself."""

    settings: TrainSettings
    cameras: tuple[str, ...]
    scenes: int
    probe_scenes: int
    train_seconds: float
    command: str
    probe: Sequence[ProbeRow]


def require_free(out: Path) -> None:
    """Refuse a folder that something is in, before time is spent.

    Raises:
        ConfigError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder: give a new one for the weights, or remove it.")


def write_tower(model: SiglipVisionModel, facts: CardFacts, out: Path) -> None:
    """Write `config.json`, `model.safetensors` and `README.md` into a new folder, all of them or none.

    Raises:
        ConfigError: `out` is not empty.
    """
    require_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".writing-{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(model, facts, temporary / WEIGHTS))
        for path in (
            temporary,
            *temporary.iterdir(),
        ):  # temporary folders and weights are written for their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def milliseconds_per_image(model: SiglipVisionModel, batch: int = 48, repeats: int = 5) -> float:
    """Median CPU time of this thread for one image in a batch, ms."""
    size = model.config.image_size
    pixels = torch.zeros(batch, 3, size, size)
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.thread_time()
            model(pixel_values=pixels)
            times.append(time.thread_time() - start)
    return 1e3 * statistics.median(times[1:]) / batch


def _card(model: SiglipVisionModel, facts: CardFacts, weights: Path) -> str:
    config = model.config
    return _CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        width=config.hidden_size,
        patch=config.patch_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        scenes=facts.scenes,
        teleported=1 - PER_BLOCK[KINDS.index("true")] / BLOCK,
        threads=torch.get_num_threads(),
        views=len(facts.cameras),
        cameras=", ".join(facts.cameras),
        steps=facts.settings.steps,
        batch=facts.settings.batch_scenes,
        seconds=facts.train_seconds,
        command=facts.command,
        seed=facts.settings.seed,
        weights=WEIGHTS,
        megabytes=weights.stat().st_size / 1e6,
        digest=sha256_file(weights),
        milliseconds=milliseconds_per_image(model),
        probe_scenes=facts.probe_scenes,
        table=format_table(facts.probe),
    )

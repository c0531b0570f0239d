"""A campaign as its steps leave it behind, written through the same code that they use, without running them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from roboimi.errors import NonFiniteError, RoboimiError
from roboimi.storage.launch_record import CAMPAIGN, launch_record
from roboimi.storage.store import Store, open_store
from roboimi.vla.rollouts.eval_run import RESULT, SCHEMA
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS, UNKNOWN, EpisodeOutcome, EpisodeTiming
from roboimi.vla.rollouts.records import EpisodeLog, summarise
from roboimi.vla.training.metrics import MetricsLog

FIRST_SEED = 100_000


def picture(hue: int, width: int = 1628, height: int = 172) -> bytes:
    """WebP bytes of a strip-shaped picture."""
    rows = np.linspace(0, 255, height, dtype=np.uint8)[:, None, None]
    columns = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    pixels = np.concatenate(
        [rows + 0 * columns, 0 * rows + columns, np.full((height, width, 1), hue, np.uint8)], axis=2
    )
    target = BytesIO()
    Image.fromarray(pixels).save(target, "WEBP", quality=80)
    return target.getvalue()


@dataclass
class MadeArm:
    """What one arm leaves behind.

    Attributes:
        name: of the arm.
        overrides: as in the arms file.
        outcomes: one an episode: True, False, or None for unknown.
        stages: highest stage of each episode; None: 4 for a success, 2 otherwise.
        dies_in: the step that fails, if any.
        error: what it fails with.
        strips: kind -> WebP bytes; None: two plain pictures.
    """

    name: str
    overrides: Sequence[str] = ()
    outcomes: Sequence[bool | None] = ()
    stages: Sequence[int] | None = None
    dies_in: str = ""
    error: RoboimiError = field(default_factory=lambda: NonFiniteError("The loss was not finite in 11 steps."))
    strips: Mapping[str, bytes] | None = None

    def as_parameter(self) -> dict[str, Any]:
        return {"arm": self.name, "overrides": list(self.overrides)}


class MadeCampaign:
    """Writes a campaign's records and results into a store."""

    def __init__(self, root: Path, job_id: str = "20261121-143000-ab12", encoder: str = "standin"):
        self.store: Store = open_store(root)
        self.job_id, self.encoder = job_id, encoder
        self.arms: list[MadeArm] = []
        self.first_number = 0

    @property
    def experiments(self) -> list[dict[str, Any]]:
        return [arm.as_parameter() for arm in self.arms]

    def step(
        self, step: str, arm: str = CAMPAIGN, *, seconds: float = 1.0, error: RoboimiError | None = None, **fields
    ):
        """A launch record, as the step itself writes it; only its duration is made up."""
        try:
            with launch_record(self.store, self.job_id, arm, step) as record:
                record |= fields
                if error is not None:
                    raise error
        except RoboimiError:
            pass
        self._lengthen(f"campaigns/{self.job_id}/{arm}/{step}.json", seconds)

    def shared_steps(self, *, fails: str = "", error: RoboimiError | None = None) -> None:
        """validate, smoke and encode, up to and including the one that fails."""
        digest = "3f" * 32
        facts = {
            "validate": {
                "dataset": f"datasets/transfer_cube@sha256:{digest}",
                "dataset_digest": digest,
                "episodes": 100,
                "frames": 20010,
                "result": "100 episodes, 20010 frames, 0 warnings",
            },
            "smoke": {"encoder": self.encoder, "result": "features finite, cached = online"},
            "encode": {"encoder": self.encoder, "result": "20010 frames x 3 views, 128 wide"},
        }
        for (step, fields), seconds in zip(facts.items(), (2.1, 5.6, 97.0), strict=True):
            self.step(step, seconds=seconds, error=error if step == fails else None, **fields)
            if step == fails:
                return

    def add(self, name: str, *overrides: str, seconds: tuple[float, float] = (160.0, 31.0), **facts: Any) -> None:
        """train and evaluate of one arm, up to and including the one that fails; `facts` as in `MadeArm`."""
        arm = MadeArm(name, overrides, **facts)
        self.arms.append(arm)
        training = f"trainings/{self._number():032x}"
        died = arm.error if arm.dies_in == "train" else None
        self._training(training, arm, last_step=700 if died else 2000)
        self.step(
            "train", arm.name, seconds=seconds[0], error=died, training=training, result="2000 steps, loss 0.0312"
        )
        if died:
            return
        died = arm.error if arm.dies_in == "evaluate" else None
        rollouts = f"rollouts/{self._number():032x}"
        if not died:
            self._rollouts(rollouts, arm)
        self.step("evaluate", arm.name, seconds=seconds[1], error=died, **({} if died else {"rollouts": rollouts}))

    def _number(self) -> int:
        return self.first_number + len(self.arms)

    def _training(self, prefix: str, arm: MadeArm, last_step: int) -> None:
        folder, rng = self.store.folder(prefix), np.random.default_rng(len(self.arms))
        with MetricsLog(folder / "metrics.jsonl", 0) as metrics:
            for step in range(50, last_step + 1, 50):
                noise = 1 + 0.08 * rng.standard_normal()
                metrics.write("train", step, {"loss": (0.02 + 0.9 * np.exp(-step / 260)) * noise, "lr": 1e-3})
                if step % 500 == 0:
                    good = int(rng.binomial(5, min(1.0, step / 2500)))
                    metrics.write("rollout", step, {"successes": good, "episodes": 5, "success_rate": good / 5})
        record = {
            "config": {"head": {"n_emb": 192}, "train": {"steps": 2000, "seed": 0}},
            "encoder": self.encoder,
            "dataset": {"path": "/data/transfer_cube", "digest": "3f" * 32},
        }
        self.store.write_json(f"{prefix}/TRAINING.json", record)
        if last_step == 2000:
            document = {"steps": 2000, "seconds": 158.2, "policy_digest": f"{len(self.arms):064x}"}
            self.store.publish(prefix, RESULT, document)

    def _rollouts(self, prefix: str, arm: MadeArm) -> None:
        folder = self.store.folder(prefix)
        seeds = list(range(FIRST_SEED, FIRST_SEED + len(arm.outcomes)))
        outcomes = [{True: SUCCESS, False: FAILURE, None: UNKNOWN}[known] for known in arm.outcomes]
        stages = arm.stages or [4 if outcome == SUCCESS else 2 for outcome in outcomes]
        with EpisodeLog(folder, seeds) as log:
            for seed, outcome, stage in zip(seeds, outcomes, stages, strict=True):
                reason = "MujocoError: made up" if outcome == UNKNOWN else ""
                actions = np.zeros((160, 14), np.float32)
                timing = EpisodeTiming(observe_s=1.0, step_s=0.5, chunk_ms=41.5, control_ms=12.0)
                log.write(EpisodeOutcome(seed, outcome, stage, 160, 20, (480, 640), reason, actions, timing))
            log.finish()
            lines = list(log.lines.values())
        kinds = {line["outcome"]: line["seed"] for line in reversed(lines) if line["outcome"] != UNKNOWN}
        strips = {}
        for kind, image in (arm.strips or {kind: picture(90 * i) for i, kind in enumerate(kinds)}).items():
            (folder / f"filmstrip_{kind}.webp").write_bytes(image)
            strips[kind] = {"file": f"filmstrip_{kind}.webp", "seed": kinds[kind], "camera": "top"}
        document = {
            "schema": SCHEMA,
            "seeds": seeds,
            "num_action_steps": 8,
            "num_inference_steps": 1,
            **summarise(lines),
            "filmstrips": strips,
        }
        self.store.publish(prefix, RESULT, document)

    def _lengthen(self, key: str, seconds: float) -> None:
        record = self.store.read_json(key)
        self.store.write_json(key, {**record, "seconds": seconds})

    def corrupt(self, prefix: str, file: str) -> None:
        """Overwrite a file with what is not JSON."""
        (self.store.folder(prefix) / file).write_text("{")

    def mark_running(self, arm: str, step: str) -> None:
        """Leave a record as a killed process does."""
        key = f"campaigns/{self.job_id}/{arm}/{step}.json"
        record = json.loads(json.dumps(self.store.read_json(key)))
        self.store.write_json(key, {**record, "status": "running", "seconds": None})


@pytest.fixture(autouse=True)
def one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch records name this revision, instead of asking git for each."""
    monkeypatch.setenv("ROBOIMI_REVISION", "5e" * 20)


@pytest.fixture
def made(tmp_path: Path) -> MadeCampaign:
    """A campaign whose own steps succeeded; arms are added by the test."""
    campaign = MadeCampaign(tmp_path / "store")
    campaign.shared_steps()
    return campaign


@pytest.fixture
def campaign_maker() -> Callable[[MadeCampaign, str], MadeCampaign]:
    """`campaign_maker(made, job_id)`: another campaign in the same store."""

    def make(beside: MadeCampaign, job_id: str) -> MadeCampaign:
        campaign = MadeCampaign(Path(beside.store.uri), job_id)
        campaign.first_number = 1000
        campaign.shared_steps()
        return campaign

    return make


@pytest.fixture
def unmade(tmp_path: Path) -> MadeCampaign:
    """A campaign of which nothing has run."""
    return MadeCampaign(tmp_path / "store")


@pytest.fixture
def full(made: MadeCampaign) -> MadeCampaign:
    """A campaign of four arms that all finished, on 20 seeds."""
    hard = np.random.default_rng(7).uniform(size=20)
    for name, override, share in (
        ("projection-96", "backbone.per_view_output_dim=96", 0.35),
        ("projection-192", "backbone.per_view_output_dim=192", 0.5),
        ("privileged_state", "backbone=privileged_state", 0.93),
        ("blind", "backbone=blind", 0.08),
    ):
        made.add(name, override, outcomes=[bool(value < share) for value in hard])
    return made


@pytest.fixture
def webp() -> bytes:
    """A picture shaped like a filmstrip."""
    return picture(90)

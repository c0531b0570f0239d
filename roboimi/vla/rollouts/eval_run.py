"""What an evaluation is, by which key it is known, and what came out of it. Needs no deep-learning library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from roboimi.errors import CheckpointError, ConfigError, RoboimiError
from roboimi.shards import Shard
from roboimi.storage.keys import PREFIX_LENGTH, sha256_json
from roboimi.storage.store import Store
from roboimi.vla.chunk_queue import require_slice
from roboimi.vla.config import ALGORITHM, EvalConfig, TaskConfig

RESULT = "RESULT.json"
SCHEMA = "roboimi.rollouts/2"


class EnvironmentBroken(RoboimiError):
    """The environment raised in every episode."""

    failure_class = "environment"


@dataclass(frozen=True)
class EvalRun:
    """One evaluation, ready to run.

    Attributes:
        checkpoint: prefix of the checkpoint in the store.
        policy_digest: SHA-256 of its averaged weights.
        task: where it is rolled out.
        settings: episodes, seeds and the like; Ta and NFE are set.
        device: `auto`, `cpu` or `cuda`.
        filmstrips: whether a success and a failure are drawn.
        videos: of how many episodes there is one, successes and failures in turn.
    """

    checkpoint: str
    policy_digest: str
    task: TaskConfig
    settings: EvalConfig
    device: str = "auto"
    filmstrips: bool = True
    videos: int = 0

    @classmethod
    def from_store(
        cls,
        store: Store,
        checkpoint: str,
        settings: EvalConfig,
        *,
        device: str = "auto",
        filmstrips: bool = True,
        videos: int = 0,
        task: Mapping[str, Any] | None = None,
    ) -> Self:
        """Complete an evaluation from what the store knows of the training.

        Args:
            store: where the training lives.
            checkpoint: prefix of a checkpoint, or of a training, whose newest checkpoint is then taken.
            settings: Ta and NFE that are None become those of the training.
            device: `auto`, `cpu` or `cuda`.
            filmstrips: whether a success and a failure are drawn.
            videos: of how many episodes there is one.
            task: settings that differ from the training's task.

        Raises:
            CheckpointError: there is no such checkpoint.
            ConfigError: the task's settings cannot work, its cameras are not those that the policy was trained with,
                or Ta does not lie in the policy's chunk.
        """
        training, _, name = checkpoint.partition("/checkpoints/")
        if not name:
            latest = store.read_json(f"{training}/LATEST.json")
            if latest is None:
                raise CheckpointError(f"{training} in {store.uri} has no checkpoint: train first, or check its name.")
            name = latest["checkpoint"]
        checkpoint = f"{training}/checkpoints/{name}"
        manifest = store.committed(checkpoint, "MANIFEST.json")
        record = store.read_json(f"{training}/TRAINING.json")
        if manifest is None or record is None:
            raise CheckpointError(
                f"{checkpoint} in {store.uri} is no finished checkpoint: train first, or check its name."
            )
        config = record["config"]
        as_trained = {
            name: int(config[name])
            for name in ("num_action_steps", "num_inference_steps")
            if getattr(settings, name) is None
        }
        settings = replace(settings, **as_trained)
        require_slice(int(config["obs_horizon"]), int(config["pred_horizon"]), settings.num_action_steps)
        rolled_out_in = _task({**config["task"], **(task or {})})
        _require_cameras(config, rolled_out_in)
        return cls(
            checkpoint=checkpoint,
            policy_digest=manifest["files"]["ema.safetensors"]["sha256"],
            task=rolled_out_in,
            settings=settings,
            device=device,
            filmstrips=filmstrips,
            videos=videos,
        )

    def of_shard(self, shard: Shard) -> Self:
        """This evaluation over the shard's share of the seeds, without pictures.

        Raises:
            ConfigError: there are more shards than seeds.
        """
        seeds = shard.share(self.settings.seeds)
        if not seeds:
            raise ConfigError(
                f"{shard.count} shards are too many for {self.settings.episodes} episodes: lower the shards of the "
                "profile, or evaluate on more episodes."
            )
        settings = replace(self.settings, first_seed=seeds.start, episodes=len(seeds))
        return replace(self, settings=settings, filmstrips=False, videos=0)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides the outcomes; its hash is the key of the rollouts."""
        task = {name: value for name, value in asdict(self.task).items() if name != "name"}
        return {
            "algorithm": ALGORITHM["evaluate"],
            "policy": self.policy_digest,
            "task": task,
            "seeds": list(self.settings.seeds),
            "num_action_steps": self.settings.num_action_steps,
            "num_inference_steps": self.settings.num_inference_steps,
        }

    @property
    def prefix(self) -> str:
        """Where the rollouts lie in the store."""
        return f"rollouts/{sha256_json(self.fingerprint())[:PREFIX_LENGTH]}"


@dataclass(frozen=True)
class EvalResult:
    """A finished evaluation.

    Attributes:
        rollouts: its prefix in the store.
        policy_digest: of the policy that was rolled out.
        successes: episodes that succeeded.
        episodes: episodes whose outcome is known.
        unknown: episodes in which the environment broke; they are in no rate.
        stages: highest stage reached, as text -> known episodes.
        mean_steps: control steps of a known episode.
        latency_ms: median time of one prediction.
        control_ms: median over episodes of the time that a control step took, everything included.
        seconds: wall time of the attempt that finished it.
        adopted: whether it was found finished, and nothing was rolled out now.
    """

    rollouts: str
    policy_digest: str
    successes: int
    episodes: int
    unknown: int
    stages: dict[str, int]
    mean_steps: float
    latency_ms: float
    control_ms: float
    seconds: float
    adopted: bool = False

    @property
    def success_rate(self) -> float | None:
        """Successes over known episodes; None without any."""
        return self.successes / self.episodes if self.episodes else None

    @classmethod
    def from_document(cls, prefix: str, document: Mapping[str, Any], *, adopted: bool) -> Self:
        """From RESULT.json."""
        names = ("policy_digest", "successes", "episodes", "unknown", "stages", "mean_steps")
        names += ("latency_ms", "control_ms", "seconds")
        return cls(rollouts=prefix, **{name: document[name] for name in names}, adopted=adopted)


def _task(values: Mapping[str, Any]) -> TaskConfig:
    try:
        return TaskConfig(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )
    except TypeError as error:
        raise ConfigError(f"The settings of 'task' do not fit: {error}.") from error


def _require_cameras(config: Mapping[str, Any], task: TaskConfig) -> None:
    """Each view has a projection of its own, so other cameras, or the same in another order, are another input."""
    trained = tuple(config["task"]["cameras"])
    if config["backbone"]["needs"] == "images" and task.cameras != trained:
        raise ConfigError(
            f"The policy was trained with the {len(trained)} cameras {list(trained)} in this order and the task "
            f"{task.name!r} has {list(task.cameras)}: leave task.cameras as it was trained."
        )

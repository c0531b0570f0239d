"""Settings of a training and of an evaluation: composed by Hydra, then frozen and checked.

Hydra ends here: library code sees plain dicts and frozen dataclasses, never a DictConfig.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from roboimi.errors import ConfigError
from roboimi.storage.keys import sha256_json

ALGORITHM = {"train": 1, "evaluate": 2}
"""Raised by one when a step's code gives other results from the same inputs; part of that step's keys."""

NOT_SEMANTIC = (
    "log_every",
    "rollout_every",
    "rollout_episodes",
    "checkpoint_interval_s",
    "keep_checkpoints",
    "device",
    "threads",
    "tracking",
    "when_held",
    "retry_failed",
)
"""Training settings that change no weight: no part of a training's key."""


@dataclass(frozen=True)
class TaskConfig:
    """A task: the Gymnasium environment that rollouts run in, and the shapes that a dataset of it has.

    Attributes:
        name: for records and reports.
        env_id: Gymnasium id.
        env_kwargs: passed to `gymnasium.make`.
        control_hz: actions a second; equals the dataset's fps.
        cameras: the V views, in the order of the view axis.
        state_dim: S.
        action_dim: A.
        environment_state_dim: width of the privileged state, 0 where there is none.
        num_views: V.
    """

    name: str
    env_id: str
    control_hz: int
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    environment_state_dim: int
    num_views: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.cameras) != self.num_views or len(set(self.cameras)) != self.num_views:
            raise ConfigError(
                f"Task {self.name!r} has num_views={self.num_views} and the cameras {list(self.cameras)}: "
                "give as many different cameras as views."
            )
        for name in ("control_hz", "state_dim", "action_dim"):
            _require(getattr(self, name) > 0, f"task.{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained; the YAML file `conf/train/default.yaml` says what each setting means."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_steps: int
    final_lr_fraction: float
    grad_clip: float
    ema_power: float
    ema_max_decay: float
    seed: int
    max_nonfinite: int
    precision: str
    compile: bool
    log_every: int
    rollout_every: int
    rollout_episodes: int
    checkpoint_interval_s: float
    keep_checkpoints: int
    device: str
    threads: int
    tracking: str
    when_held: str
    retry_failed: bool

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            _require(number or item.type not in {int, float}, f"train.{item.name}={value!r} must be a number")
        for name in ("steps", "batch_size", "learning_rate", "grad_clip", "log_every", "keep_checkpoints"):
            _require(getattr(self, name) > 0, f"train.{name}={getattr(self, name)} must be positive")
        for name in ("warmup_steps", "weight_decay", "max_nonfinite", "rollout_every", "threads", "seed"):
            _require(getattr(self, name) >= 0, f"train.{name}={getattr(self, name)} must not be negative")
        _require(0 <= self.ema_max_decay < 1, f"train.ema_max_decay={self.ema_max_decay} must be in [0, 1)")
        _require(
            0 <= self.final_lr_fraction <= 1, f"train.final_lr_fraction={self.final_lr_fraction} must be in [0, 1]"
        )
        _require(self.device in {"auto", "cpu", "cuda"}, f"train.device={self.device!r} must be auto, cpu or cuda")
        _require(
            self.precision in {"float32", "bfloat16"},
            f"train.precision={self.precision!r} must be float32 or bfloat16",
        )
        _require(isinstance(self.compile, bool), f"train.compile={self.compile!r} must be true or false")
        _require(
            self.tracking in {"online", "offline", "disabled"},
            f"train.tracking={self.tracking!r} must be online, offline or disabled",
        )
        _require(
            self.when_held in {"wait", "fail", "supersede"},
            f"train.when_held={self.when_held!r} must be wait, fail or supersede",
        )
        _require(isinstance(self.retry_failed, bool), f"train.retry_failed={self.retry_failed!r} must be true or false")


@dataclass(frozen=True)
class EvalConfig:
    """Which rollouts to run.

    Attributes:
        episodes: how many; their seeds are `first_seed`, `first_seed + 1`, ..., the same for every arm.
        first_seed: far from the seeds that demonstrations are recorded with.
        num_action_steps: Ta; None: as trained.
        num_inference_steps: NFE of one chunk; None: as trained.
        workers: processes, each with one environment and one renderer; None: as many as cores may be used; 0: all in
            this process, without a watchdog.
        parallel_envs: environments advanced together where there are no workers.
        step_timeout_s: a worker that finishes no control step for so long hangs.
        episode_timeout_s: as does one whose episode takes longer than this.
    """

    episodes: int = 50
    first_seed: int = 100_000
    num_action_steps: int | None = None
    num_inference_steps: int | None = None
    workers: int | None = None
    parallel_envs: int = 25
    step_timeout_s: float = 60.0
    episode_timeout_s: float = 900.0

    def __post_init__(self):
        for name in ("episodes", "first_seed", "num_action_steps", "num_inference_steps", "workers", "parallel_envs"):
            value = getattr(self, name)
            optional = name in {"num_action_steps", "num_inference_steps", "workers"}
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole or (optional and value is None), f"eval.{name}={value!r} must be a whole number")
        for name in ("episodes", "parallel_envs", "step_timeout_s", "episode_timeout_s"):
            _require(getattr(self, name) > 0, f"eval.{name}={getattr(self, name)} must be positive")
        for name in ("first_seed", "workers"):
            _require((getattr(self, name) or 0) >= 0, f"eval.{name}={getattr(self, name)} must not be negative")
        _require(
            self.num_inference_steps is None or self.num_inference_steps > 0,
            f"eval.num_inference_steps={self.num_inference_steps} must be positive",
        )

    @property
    def seeds(self) -> range:
        """The seeds of the rollouts, one an episode."""
        return range(self.first_seed, self.first_seed + self.episodes)


@dataclass(frozen=True)
class TrainRun:
    """One training, ready to run.

    Attributes:
        config: the whole resolved configuration (plain dicts and lists), from which modules are built.
        task: what the policy is for.
        train: how it is trained.
        dataset: `PATH` or `PATH@sha256:<digest>`.
        encoder: name of the frozen vision tower.
    """

    config: dict[str, Any]
    task: TaskConfig
    train: TrainConfig
    dataset: str
    encoder: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From a resolved configuration of `conf/train_vla.yaml`.

        Raises:
            ConfigError: a setting is missing, unknown, or cannot work.
        """
        horizon, executed, observed = (int(config[k]) for k in ("pred_horizon", "num_action_steps", "obs_horizon"))
        most = horizon - observed + 1
        _require(
            1 <= executed <= most,
            f"num_action_steps={executed} must be between 1 and pred_horizon - obs_horizon + 1 = {most}",
        )
        return cls(
            config=dict(config),
            task=_frozen(TaskConfig, config["task"], "task"),
            train=_frozen(TrainConfig, config["train"], "train"),
            dataset=str(config["dataset"]),
            encoder=str(config["encoder"]),
        )

    @classmethod
    def from_overrides(cls, overrides: Sequence[str], *, dataset: str, encoder: str) -> Self:
        """Compose `conf/train_vla.yaml` with an arm's overrides for a dataset and an encoder."""
        return cls.from_config(compose_config(overrides, values={"dataset": dataset, "encoder": encoder}))

    @property
    def needs(self) -> str:
        """What the backbone reads: `images`, `environment_state`, or nothing (the empty string)."""
        return str(self.config["backbone"]["needs"])

    def semantic_config(self) -> dict[str, Any]:
        """What decides the weights: the configuration without paths, devices, intervals and names."""
        # The backbone's node repeats the encoder's name; its digest is what counts.
        config = _without(self.config, {"dataset", "store", "encoder"})
        config["train"] = {name: value for name, value in config["train"].items() if name not in NOT_SEMANTIC}
        return config

    def fingerprint(self, dataset_digest: str, encoder_digest: str | None) -> dict[str, Any]:
        """All that decides a training's result; its hash is the training's key.

        Args:
            dataset_digest: of the dataset's manifest.
            encoder_digest: of the vision tower; counts only where the backbone reads images.
        """
        return {
            "algorithm": ALGORITHM["train"],
            "config": self.semantic_config(),
            "dataset": dataset_digest,
            "encoder": encoder_digest if self.needs == "images" else None,
        }


def training_key(fingerprint: Mapping[str, Any]) -> str:
    """The key of a training: hex SHA-256 of its fingerprint."""
    return sha256_json(fingerprint)


def compose_config(
    overrides: Sequence[str] = (), config_name: str = "train_vla", values: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Compose and resolve a configuration of `roboimi/vla/conf`.

    Args:
        overrides: Hydra overrides, as in `["backbone.per_view_output_dim=192", "head=small"]`.
        config_name: the root file.
        values: top-level settings, as plain text that needs no quoting; nodes that refer to them get them too.

    Returns:
        Plain dicts, lists, numbers and strings. `dataset` is left out where no override gives it.

    Raises:
        ConfigError: an override is misspelled or names something that does not exist.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_module("roboimi.vla.conf", version_base="1.3"):
            config = compose(config_name, overrides=list(overrides))
        for name, value in (values or {}).items():
            config[name] = value.replace("${", "\\${")  # a path may hold what OmegaConf would interpolate
        if OmegaConf.is_missing(config, "dataset"):
            config.dataset = ""
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        summary = " ".join(str(error).split())
        raise ConfigError(f"The overrides {list(overrides)} do not fit the configuration: {summary}") from error


def _without(value: Any, names: set[str]) -> Any:
    """A nested configuration without the settings of these names, wherever they are."""
    if isinstance(value, Mapping):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def _frozen(kind: type, values: Mapping[str, Any], group: str) -> Any:
    known = {item.name for item in fields(kind)}
    unknown = set(values) - known
    _require(not unknown, f"{group} has the unknown settings {sorted(unknown)}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"The settings of {group!r} do not fit: {error}.") from error


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(f"{sentence}: change it in the configuration or by an override.")

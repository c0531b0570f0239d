"""Profiles: what differs between running the campaign's DAG on one machine and on a cluster.

A profile is a YAML file, in `pipelines/conf` or anywhere, read into frozen dataclasses, so that a misspelled setting is
one sentence and not a default. With `base: cluster` in it, a file holds only what differs from that profile: mappings
are merged, everything else is replaced.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import yaml

from roboimi.errors import ConfigError

CONF = Path(__file__).parent / "conf"

STEPS = (
    "validate_dataset",
    "smoke_test_encoder",
    "preflight_gpu",
    "encode_shard",
    "encode_features",
    "train_policy",
    "evaluate_shard",
    "evaluate_policy",
    "compare_experiments",
)
"""The steps of a campaign, in their order; those of a shard only where a profile has more than one."""

GPU_STEPS = frozenset(
    {"preflight_gpu", "encode_shard", "encode_features", "train_policy", "evaluate_shard", "evaluate_policy"}
)
CPU_IMAGE_STEPS = frozenset({"validate_dataset", "compare_experiments"})


@dataclass(frozen=True)
class Defaults:
    """Default values of the pipeline's parameters, and what the command line does without options.

    Attributes:
        dataset: folder or URI of the episodes.
        record_episodes: how many demonstrations the command line records when `dataset` is not there.
        store: URI of the store.
        encoder: name of the vision tower.
        arms: name of a file in `conf/arms`, or a path.
        reference_arms: whether the arms of `conf/arms/reference.yaml` are always there.
        train_overrides: Hydra overrides for every arm.
        eval_episodes: rollouts an arm.
        eval_seed: seed of the first rollout.
        training_seeds: each arm of `arms` is trained once with each of them; with one, it is the training's own.
    """

    dataset: str
    record_episodes: int
    store: str
    encoder: str
    arms: str
    reference_arms: bool
    train_overrides: tuple[str, ...]
    eval_episodes: int
    eval_seed: int
    training_seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Images:
    """The two images, by tag or, better, by digest."""

    cpu: str
    gpu: str


@dataclass(frozen=True)
class Gpu:
    """How a step asks for its accelerator (a count of 0: for none); `shm_size` is the size of its /dev/shm."""

    resource: str
    count: int
    shm_size: str
    tolerations: tuple[dict[str, str], ...] = ()
    node_selector: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Secret:
    """A Kubernetes secret in the environment of steps.

    Attributes:
        name: of the secret.
        env: its keys -> environment variables.
        steps: which steps get it; none: all.
        required: whether a step cannot start without it.
    """

    name: str
    env: dict[str, str]
    steps: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Security:
    """As whom steps run; the images are made for any user of group 0."""

    run_as_user: int
    run_as_group: int


@dataclass(frozen=True)
class Retry:
    """KFP's retries of a failed step; durations such as `60s`."""

    count: int
    backoff: str
    factor: float
    max_duration: str


@dataclass(frozen=True)
class Cluster:
    """What only a cluster needs.

    Attributes:
        images: by digest in a real campaign.
        gpu: how GPU steps are scheduled.
        resources: for each step its cpu request, cpu limit, memory request and memory limit.
        secrets: what steps read from Kubernetes secrets.
        retry: of every step but the exit task.
        security: as whom steps run.
        restarts: how often in a row, without a new checkpoint, a crashed training is started again inside its pod.
        encode_shards: how many pods encode at the same time.
        eval_shards: how many pods roll one policy out at the same time.
        require_gpu: whether the preflight insists on CUDA and a GPU's renderer.
        ttl_s: how long Kubernetes keeps the objects of a finished run; 0: as long as the cluster does by itself. A KFP
            before 2.17 does not know the setting, and then ignores everything that is said of pods.
        timeout_s: for each step that has one.
        defaults_config_map: ConfigMap with the site's settings, see `pipelines.placement.SITE_SETTINGS`; empty: none.
        ca_config_map: ConfigMap whose key `ca.crt` holds the object store's certificates; empty: none.
        queue: of Kueue, for the steps with a GPU; empty: none.
    """

    images: Images
    gpu: Gpu
    resources: dict[str, tuple[str, str, str, str]]
    secrets: tuple[Secret, ...]
    retry: Retry
    security: Security
    restarts: int
    encode_shards: int
    eval_shards: int
    require_gpu: bool
    ttl_s: int
    timeout_s: dict[str, int] = field(default_factory=dict)
    defaults_config_map: str = ""
    ca_config_map: str = ""
    queue: str = ""


@dataclass(frozen=True)
class Profile:
    """One way to run the campaign.

    Attributes:
        name: of the YAML file.
        parallelism: how many arms at a time.
        defaults: of the pipeline's parameters.
        cluster: None on one machine.
        job_id: the campaign's run id, where it is known beforehand; None: the orchestrator's own. That of kfp.local is
            a random number of 8 digits, which neither sorts nor tells anything.
    """

    name: str
    parallelism: int
    defaults: Defaults
    cluster: Cluster | None = None
    job_id: str | None = None

    def with_images(self, cpu: str | None, gpu: str | None) -> Self:
        """The same profile with other images; None keeps one."""
        if self.cluster is None:
            raise ConfigError(f"Profile {self.name!r} runs no images: leave --cpu-image and --gpu-image out.")
        images = Images(cpu=cpu or self.cluster.images.cpu, gpu=gpu or self.cluster.images.gpu)
        return replace(self, cluster=replace(self.cluster, images=images))

    def shard_arguments(self) -> dict[str, Any]:
        """The pipeline's parameters that only a cluster's campaign has."""
        if self.cluster is None:
            return {}
        return {
            "encode_shards": shard_names(self.cluster.encode_shards),
            "eval_shards": shard_names(self.cluster.eval_shards),
            "require_gpu": self.cluster.require_gpu,
        }


def shard_names(count: int) -> list[str]:
    """`1/3`, `2/3`, `3/3`: what the steps of a sharded stage are told."""
    return [f"{number}/{count}" for number in range(1, count + 1)]


def profile_names() -> list[str]:
    """The profiles that can be named."""
    return sorted(path.stem for path in CONF.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile.

    Args:
        name: of a file in `pipelines/conf`, without its ending, or the path of a YAML file.

    Raises:
        ConfigError: there is no such profile, or it has a setting that is unknown, missing or wrong.
    """
    path = _path(name)
    values = _read(path)
    cluster = values.pop("cluster", None)
    defaults = _build(Defaults, values.pop("defaults", {}), f"{path}: defaults")
    cluster = _cluster(cluster, path) if cluster else None
    profile = _build(Profile, {**values, "defaults": defaults, "cluster": cluster}, str(path))
    seeds = defaults.training_seeds
    if not seeds or len(set(seeds)) != len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ConfigError(f"{path}: defaults.training_seeds={list(seeds)} must be different whole numbers from 0 on.")
    if profile.parallelism < 1:
        raise ConfigError(f"{path}: parallelism={profile.parallelism} must be at least 1.")
    return profile


def _path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    path = CONF / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"There is no profile {name!r}: choose one of {', '.join(profile_names())}, or give a file's path."
        )
    return path


def _read(path: Path, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file, on top of those of the profile that it names as its base."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"Profile {path} cannot be read ({error.strerror}): check --profile.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Profile {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Profile {path} holds no settings: compare with another profile in {CONF}.")
    base = values.pop("base", None)
    if base is None:
        return values
    if path in over:
        raise ConfigError(f"Profile {path} is its own base: change 'base'.")
    return _merged(_read(_path(str(base)), (*over, path)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(base[name], value) for name, value in values.items() if _mappings(base.get(name), value)}
    return {**base, **values, **both}


def _mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _cluster(values: dict[str, Any], path: Path) -> Cluster:
    resources = {step: tuple(tier) for step, tier in values.get("resources", {}).items()}
    if set(resources) != set(STEPS) or any(len(tier) != 4 for tier in resources.values()):
        raise ConfigError(f"{path}: cluster.resources must give four values for each of {', '.join(STEPS)}.")
    parts = {
        "images": _build(Images, values.get("images", {}), f"{path}: cluster.images"),
        "gpu": _build(Gpu, values.get("gpu", {}), f"{path}: cluster.gpu"),
        "secrets": tuple(_build(Secret, item, f"{path}: cluster.secrets") for item in values.get("secrets", [])),
        "retry": _build(Retry, values.get("retry", {}), f"{path}: cluster.retry"),
        "security": _build(Security, values.get("security", {}), f"{path}: cluster.security"),
        "resources": resources,
    }
    cluster = _build(Cluster, {**values, **parts}, f"{path}: cluster")
    for name, least in {"encode_shards": 1, "eval_shards": 1, "restarts": 0, "ttl_s": 0}.items():
        if not isinstance(getattr(cluster, name), int) or getattr(cluster, name) < least:
            raise ConfigError(
                f"{path}: cluster.{name}={getattr(cluster, name)!r} must be a whole number from {least} on."
            )
    named = {step for secret in cluster.secrets for step in secret.steps} | set(cluster.timeout_s)
    if unknown := sorted(named - set(STEPS)):
        raise ConfigError(f"{path}: {', '.join(unknown)} is no step: there are {', '.join(STEPS)}.")
    return cluster


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    unknown = sorted(set(values) - {item.name for item in fields(kind)})
    if unknown:
        raise ConfigError(f"{where} has the unknown settings {', '.join(unknown)}: remove them or correct their names.")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where} does not fit ({error}): compare with another profile in {CONF}.") from error

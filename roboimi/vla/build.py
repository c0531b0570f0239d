"""From a resolved configuration to a policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from roboimi.errors import ConfigError, RoboimiError
from roboimi.vla.agent import VLAAgent


def build_agent(
    config: Mapping[str, Any],
    *,
    vision_model: Any = None,
    feature_dim: int | None = None,
    statistics: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> VLAAgent:
    """Build the agent that `config["agent"]` describes; reads no data, so a config that cannot work fails here.

    Args:
        config: the resolved configuration of `conf/train_vla.yaml`.
        vision_model: the frozen tower, where it is already loaded.
        feature_dim: D; an image backbone is then built without a tower, for cached features.
        statistics: of the train split; None: the normalisers stay unset until a checkpoint is loaded.

    Raises:
        ConfigError: a setting is unknown, or settings do not fit together.
        EncoderError: the tower cannot be loaded.
    """
    agent_config = dict(config["agent"])
    given = {"vision_model": vision_model, "feature_dim": feature_dim}
    given = {name: value for name, value in given.items() if value is not None}
    if given and agent_config["vision_backbone"].get("needs") == "images":
        agent_config["vision_backbone"] = _instantiate(agent_config["vision_backbone"], given)
    backbone = agent_config.pop("vision_backbone")
    agent = _instantiate(agent_config, {"vision_backbone": backbone})
    if statistics is not None:
        agent.set_statistics(statistics)
    return agent


def _instantiate(node: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
    try:
        return instantiate(node, **extra)
    except HydraException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, RoboimiError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        raise ConfigError(f"{node['_target_']} cannot be built: {' '.join(str(error).split())}") from error

"""Arms: the experiments of a campaign, each a name and Hydra overrides.

They travel as one pipeline parameter, a list of dicts. Inside it KFP turns numbers into floats, and the keys `name` and
`type` would mean Python attributes of the loop's item: hence exactly the keys `arm` and `overrides`, and only strings.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.profiles import CONF, Defaults
from roboimi.errors import ConfigError
from roboimi.storage.launch_record import CAMPAIGN

_NAME = re.compile(r"[A-Za-z0-9._=-]{1,80}")

SHARED = frozenset({"dataset", "store", "encoder"})
"""Settings of the configuration that are parameters of the campaign."""

SEED_SETTING = "train.seed"

REFERENCE = "reference"
"""The file of the arms that say whether the pipeline is sound."""


@dataclass(frozen=True)
class Arm:
    """One experiment.

    Attributes:
        name: for records, reports and folder names.
        overrides: Hydra overrides of `roboimi/vla/conf/train_vla.yaml`, applied after those that all arms share.
    """

    name: str
    overrides: tuple[str, ...]

    def as_parameter(self) -> dict[str, Any]:
        """The form that the pipeline's parameter has."""
        return {"arm": self.name, "overrides": list(self.overrides)}


def load_arms(file: str | Path) -> list[Arm]:
    """Read a list of arms.

    Args:
        file: a path, or the name of a file in `pipelines/conf/arms` without its ending.

    Raises:
        ConfigError: the file is missing, or not a list of arms with unique names.
    """
    path = Path(file)
    if not path.suffix and not path.exists():
        path = CONF / "arms" / f"{file}.yaml"
    try:
        entries = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"Arms file {path} cannot be read ({error.strerror}): check --arms.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"Arms file {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"Arms file {path} holds no list: write entries such as '- arm: a' with 'overrides: [b=1]'.")
    arms = [_arm(entry, path) for entry in entries]
    check_unique(arms, str(path))
    return arms


def check_unique(arms: Iterable[Arm], where: str) -> None:
    """Refuse two arms of one name.

    Raises:
        ConfigError: naming the arms that occur twice.
    """
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where} has {', '.join(twice)} more than once: give each arm its own name.")


def check_overrides(overrides: Iterable[str], where: str) -> None:
    """Refuse overrides of what the whole campaign shares and hands to every step by itself.

    Raises:
        ConfigError: naming the override.
    """
    for override in overrides:
        if override.partition("=")[0].lstrip("+~") in SHARED:
            raise ConfigError(
                f"{where} has the override {override!r}, which one campaign cannot vary: use the option "
                f"--{override.partition('=')[0].lstrip('+~')}."
            )


def campaign_arms(defaults: Defaults, file: str | Path | None = None) -> list[Arm]:
    """The arms of a profile's campaign: those of its file, each with every training seed, and the reference arms.

    Args:
        defaults: of the profile.
        file: another list than the profile's.
    """
    arms = with_training_seeds(load_arms(file or defaults.arms), defaults.training_seeds)
    return with_reference_arms(arms) if defaults.reference_arms else arms


def with_training_seeds(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Arm]:
    """Each arm once a seed, as `<name>.seed-<seed>`; arms that set `train.seed` themselves stay as they are.

    One training says how good a checkpoint is; how good a setting is, only several tell.
    """
    if len(seeds) == 1:
        return list(arms)
    expanded = []
    for arm in arms:
        own = any(item.partition("=")[0].lstrip("+") == SEED_SETTING for item in arm.overrides)
        expanded += (
            [arm]
            if own
            else [Arm(f"{arm.name}.seed-{seed}", (*arm.overrides, f"{SEED_SETTING}={seed}")) for seed in seeds]
        )
    return expanded


def with_reference_arms(arms: Sequence[Arm]) -> list[Arm]:
    """The reference arms that are not yet in the list, then the list."""
    given = {arm.name for arm in arms}
    return [arm for arm in load_arms(REFERENCE) if arm.name not in given] + list(arms)


def only(arms: Sequence[Arm], names: Sequence[str]) -> list[Arm]:
    """The arms of these names, in the list's order; all of them for no names.

    Raises:
        ConfigError: a name that no arm has.
    """
    unknown = sorted(set(names) - {arm.name for arm in arms})
    if unknown:
        raise ConfigError(f"No arm is called {', '.join(unknown)}: there are {', '.join(arm.name for arm in arms)}.")
    return [arm for arm in arms if not names or arm.name in names]


def _arm(entry: Any, path: Path) -> Arm:
    if not isinstance(entry, dict) or set(entry) - {"overrides"} != {"arm"}:
        raise ConfigError(f"Arms file {path} has the entry {entry!r}: an arm has the keys 'arm' and 'overrides' only.")
    name, overrides = str(entry["arm"]), entry.get("overrides") or []
    if not _NAME.fullmatch(name) or name in {".", "..", CAMPAIGN}:
        raise ConfigError(
            f"Arms file {path} has the arm {name!r}: use 1 to 80 letters, digits and . _ = - and not {CAMPAIGN!r}."
        )
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        raise ConfigError(f"Arm {name!r} in {path} needs a list of strings as overrides, such as [head=small].")
    check_overrides(overrides, f"Arm {name!r} in {path}")
    return Arm(name=name, overrides=tuple(overrides))

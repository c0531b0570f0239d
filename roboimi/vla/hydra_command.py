"""A command line whose settings are composed by Hydra, and whose failures are one sentence and an exit code."""

import os
import signal
from collections.abc import Callable
from typing import Any

from roboimi.errors import ConfigError, Interrupted, RoboimiError
from roboimi.storage.launch_record import fail


def run_hydra_command(config_name: str, work: Callable[[dict[str, Any]], None]) -> None:
    """Compose `conf/<config_name>.yaml` with the command line's overrides and call `work` with the resolved settings.

    Hydra's own options (`--help`, `--cfg job`, `--multirun`) work as usual.

    Raises:
        SystemExit: the settings cannot be composed, one that must be given is missing, or `work` raised a
            `RoboimiError`; the sentence is on standard error and the code is the error's.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    @hydra.main(config_path="pkg://roboimi.vla.conf", config_name=config_name, version_base="1.3")
    def command(config: Any) -> None:
        # Handled here: what leaves this function, Hydra announces in words of its own.
        try:
            _require_all(sorted(OmegaConf.missing_keys(config)))
            work(OmegaConf.to_container(config, resolve=True))
        except RoboimiError as error:
            fail(error)

    # Without it Hydra prints what is wrong with the command line in several lines, and exits with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        command()
    except (HydraException, OmegaConfBaseException) as error:
        fail(ConfigError(f"The command line does not fit the configuration: {' '.join(str(error).split())}"))
    except KeyboardInterrupt:
        fail(Interrupted("Stopped by SIGINT: run the same command again to go on.", signal.SIGINT))


def _require_all(missing: list[str]) -> None:
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not set: give it on the command line, as in {missing[0]}=VALUE.")

"""Every check by its code."""

from functools import cache
from types import MappingProxyType

from roboimi.vla.data.validate import (
    across_checks,
    dataset_checks,
    file_checks,
    image_checks,
    structure_checks,
    unit_checks,
    value_checks,
)
from roboimi.vla.data.validate.check import Check, Stage

_MODULES = (dataset_checks, file_checks, structure_checks, value_checks, unit_checks, image_checks, across_checks)


@cache
def all_checks() -> MappingProxyType[str, Check]:
    """Every check by its code, in the order of their stages."""
    found = [item for module in _MODULES for item in vars(module).values() if isinstance(item, Check)]
    return MappingProxyType({item.code: item for item in sorted(found, key=lambda item: item.stage)})


@cache
def checks_of(stage: Stage) -> tuple[Check, ...]:
    """The checks of one stage."""
    return tuple(check for check in all_checks().values() if check.stage is stage)

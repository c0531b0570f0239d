"""A stage that several pods share: which part each of them does."""

import re
from dataclasses import dataclass
from typing import Self

from roboimi.errors import ConfigError

_TEXT = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Shard:
    """One part of several.

    Attributes:
        index: from 0 on.
        count: of all parts.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1/4`, the first of four parts.

        Raises:
            ConfigError: the text is no shard.
        """
        match = _TEXT.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigError(f"The shard {text!r} is none: write 1/4 for the first part of four.")
        return cls(int(match[1]) - 1, int(match[2]))

    def share(self, whole: range) -> range:
        """This shard's consecutive part of a range; together they are all of it, in sizes that differ by one."""
        begin, end = (len(whole) * part // self.count for part in (self.index, self.index + 1))
        return whole[begin:end]

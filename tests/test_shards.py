"""Protects how a stage is divided: every part once, none twice, and nonsense refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.profiles import shard_names
from roboimi.errors import ConfigError
from roboimi.shards import Shard


@given(st.integers(1, 50), st.integers(0, 300), st.integers(0, 10**6))
def test_all_shards_together_are_the_whole(count, length, begin):
    whole = range(begin, begin + length)
    shares = [Shard.parse(name).share(whole) for name in shard_names(count)]
    assert [seed for share in shares for seed in share] == list(whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "1/", "a/b", "1/4 ", "-1/4", "1/0", "01/4"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="is none: write 1/4"):
        Shard.parse(text)

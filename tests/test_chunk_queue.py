"""The chunk queue: which actions of a chunk are executed, when a new one is needed, and that episodes do not mix."""

import numpy as np
import pytest

from roboimi.errors import ConfigError, PolicyOutputError
from roboimi.vla.chunk_queue import ActionChunkQueue

TO, T, TA, A = 2, 16, 8, 3


def _chunk(tag):
    """(T, A) whose entries are tag + index of the step."""
    return np.repeat(tag + np.arange(T, dtype=np.float32)[:, None], A, axis=1)


def test_the_executed_slice_starts_at_the_newest_observation():
    queue = ActionChunkQueue(1, TO, T, TA)
    queue.push([0], _chunk(100)[None])
    actions = [queue.pop([0])[0, 0] for _ in range(TA)]
    assert actions == [100 + TO - 1 + i for i in range(TA)]
    assert queue.empty() == [0]


def test_environments_ask_for_chunks_on_their_own():
    queue = ActionChunkQueue(3, TO, T, TA)
    assert queue.empty() == [0, 1, 2]
    queue.push([0, 2], np.stack([_chunk(0), _chunk(200)]))
    assert queue.empty() == [1]
    assert queue.empty([0, 1]) == [1]
    np.testing.assert_array_equal(queue.pop([2, 0])[:, 0], [201, 1])


def test_reset_drops_what_is_left_of_the_last_episode():
    queue = ActionChunkQueue(2, TO, T, TA)
    queue.push([0, 1], np.stack([_chunk(0), _chunk(100)]))
    queue.pop([0, 1])
    queue.reset([0])
    assert queue.empty() == [0]
    queue.push([0], _chunk(300)[None])
    np.testing.assert_array_equal(queue.pop([0, 1])[:, 0], [301, 102])
    queue.reset()
    assert queue.empty() == [0, 1]


@pytest.mark.parametrize("executed", [0, 16])
def test_a_slice_outside_the_chunk_is_refused(executed):
    with pytest.raises(ConfigError, match=r"between 1 and .* = 15"):
        ActionChunkQueue(1, TO, T, executed)


def test_the_longest_slice_ends_with_the_chunk():
    queue = ActionChunkQueue(1, TO, T, 15)
    queue.push([0], _chunk(0)[None])
    assert [queue.pop([0])[0, 0] for _ in range(15)][-1] == T - 1


def test_chunks_of_another_shape_are_refused():
    with pytest.raises(PolicyOutputError, match=r"\(1, 15, 3\)"):
        ActionChunkQueue(1, TO, T, TA).push([0], _chunk(0)[None, :-1])

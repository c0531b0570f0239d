"""Protects the alignment of observations, actions and padding against a window written out by hand and a plain loop."""

import numpy as np
import pytest

from roboimi.errors import ConfigError
from roboimi.vla.data.windows import WindowIndex, action_rows, observation_rows


def by_loop(frame, episode_frames, obs_horizon, pred_horizon):
    """The window of the module's picture, one row at a time."""
    seen, acted, is_pad = [], [], []
    for step in range(obs_horizon):
        row = frame - (obs_horizon - 1) + step
        seen.append(row if row > 0 else 0)
    for step in range(pred_horizon):
        row = frame - (obs_horizon - 1) + step
        is_pad.append(row >= episode_frames)
        if row < 0:
            row = 0
        while row >= episode_frames:
            row -= 1
        acted.append(row)
    return seen, acted, is_pad


def test_the_picture_in_the_middle_of_an_episode():
    assert observation_rows([10], 2).tolist() == [[9, 10]]
    rows, is_pad = action_rows([10], [100], 2, 6)
    assert rows.tolist() == [[9, 10, 11, 12, 13, 14]]
    assert not is_pad.any()


def test_executed_slice_begins_with_the_present_action():
    obs_horizon, executed = 2, 3
    rows, _ = action_rows([10], [100], obs_horizon, 6)
    assert rows[0, obs_horizon - 1 : obs_horizon - 1 + executed].tolist() == [10, 11, 12]


def test_start_repeats_the_first_frame_and_is_no_padding():
    assert observation_rows([0], 3).tolist() == [[0, 0, 0]]
    rows, is_pad = action_rows([0], [100], 3, 5)
    assert rows.tolist() == [[0, 0, 0, 1, 2]]
    assert not is_pad.any()


def test_end_repeats_the_last_action_as_padding():
    rows, is_pad = action_rows([9], [10], 2, 5)
    assert rows.tolist() == [[8, 9, 9, 9, 9]]
    assert is_pad.tolist() == [[False, False, True, True, True]]


@pytest.mark.parametrize("obs_horizon", [1, 2, 4])
@pytest.mark.parametrize("pred_horizon", [1, 5, 16])
def test_every_window_equals_the_loop(obs_horizon, pred_horizon):
    lengths = [1, 2, 7, 20]
    index = WindowIndex(lengths)
    episodes, frames = index.locate(np.arange(len(index)))
    seen = observation_rows(frames, obs_horizon)
    acted, is_pad = action_rows(frames, index.episode_frames[episodes], obs_horizon, pred_horizon)
    number = 0
    for episode, length in enumerate(lengths):
        for frame in range(length):
            assert (episodes[number], frames[number]) == (episode, frame)
            expected = by_loop(frame, length, obs_horizon, pred_horizon)
            assert (seen[number].tolist(), acted[number].tolist(), is_pad[number].tolist()) == expected
            number += 1
    assert number == len(index)


def test_window_numbers_out_of_range_are_refused():
    index = WindowIndex([3, 4])
    for number in (-1, 7):
        with pytest.raises(IndexError):
            index.locate(np.array([number]))


def test_no_frames_is_refused():
    with pytest.raises(ConfigError, match="no frames"):
        WindowIndex([])

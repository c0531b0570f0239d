"""Protects the dataset contract: it survives the way through JSON, and what cannot be is refused in one sentence."""

import json

import pytest

from roboimi.errors import DataError
from roboimi.vla.data.contract import DatasetContract

GOOD = {
    "state_dim": 3,
    "action_dim": 2,
    "environment_state_dim": 0,
    "cameras": ["top", "left"],
    "image_height": 8,
    "image_width": 10,
    "fps": 25,
}


def test_round_trip_through_json_is_exact():
    contract = DatasetContract.from_dict(GOOD)
    assert DatasetContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    assert contract.cameras == ("top", "left")
    assert contract.image_shape == (8, 10, 3)
    assert contract.num_views == 2


def test_dimensions_without_names_get_names():
    contract = DatasetContract.from_dict(GOOD)
    assert contract.state_names == ("state_0", "state_1", "state_2")
    assert contract.action_names == ("action_0", "action_1")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"state_dim": 0}, "state_dim"),
        ({"action_dim": 2.0}, "action_dim"),
        ({"action_dim": True}, "action_dim"),
        ({"environment_state_dim": -1}, "environment_state_dim"),
        ({"fps": "25"}, "fps"),
        ({"cameras": ["top", "top"]}, "twice"),
        ({"cameras": ["../top"]}, "camera name"),
        ({"cameras": "top"}, "cameras"),
        ({"action_names": ["one"]}, "action names"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_is_refused(change, word):
    with pytest.raises(DataError, match=word):
        DatasetContract.from_dict({**GOOD, **change})


def test_missing_field_is_named():
    with pytest.raises(DataError, match="fps"):
        DatasetContract.from_dict({name: value for name, value in GOOD.items() if name != "fps"})

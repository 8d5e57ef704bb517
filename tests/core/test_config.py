"""Options that are out of range or meaningless together are refused by name when the config is built."""

import pytest
from trl import DPOConfig

from trl_capo import CAPOTrainer

REFUSED = [
    ({"noise_rate": 0.7}, ["noise_rate=0.7", "[0, 0.5]", "'auto'"]),
    ({"noise_rate": "lots"}, ["noise_rate='lots'"]),
    ({"noise_rate": float("nan")}, ["noise_rate=nan"]),
    ({"noise_rate": True}, ["noise_rate=True"]),
    ({"confidence_temperature": 0.0}, ["confidence_temperature=0.0", "positive"]),
    ({"beta": 0.0}, ["beta=0.0", "0.1"]),
    ({"loss_type": ["ipo"]}, ["loss_type=['ipo']", "sigmoid", "noise_rate=0"]),
    ({"use_weighting": True}, ["use_weighting=True", "WPO", "noise_rate=0"]),
    ({"label_smoothing": 0.2}, ["label_smoothing=0.2", "noise_rate", "robust"]),
    ({"padding_free": True, "disable_dropout": False}, ["padding_free=True", "dropout of its prompt"]),
    ({"noise_rate": 2, "beta": -1, "label_smoothing": 0.1}, ["noise_rate=2", "beta=-1", "label_smoothing=0.1"]),
]


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_be_used_is_refused_in_one_error(make_args, options, named):
    with pytest.raises(ValueError, match="CAPOConfig cannot be used as it is") as error:
        make_args(**options)
    for part in named:
        assert part in str(error.value)


def test_label_smoothing_that_trl_ignores_is_a_warning_for_plain_dpo(make_args):
    with pytest.warns(UserWarning, match="label_smoothing=0.2.*TRL ignores it there"):
        make_args(label_smoothing=0.2, noise_rate=0)


def test_noise_rate_may_be_text_as_on_a_command_line_and_groups_can_be_turned_off_in_yaml(make_args):
    for given, meant in (("0.25", 0.25), (0, 0), (0.5, 0.5), ("auto", "auto")):
        assert make_args(noise_rate=given).noise_rate == meant
    for written in (None, "none", "None", "null"):
        assert make_args(group_column=written).group_column is None


def test_a_dpo_config_is_refused_with_the_remedy(make_args, pairs):
    with pytest.raises(TypeError, match=r"args is a DPOConfig.*CAPOConfig"):
        CAPOTrainer("no-such-model", args=make_args(DPOConfig), train_dataset=pairs)

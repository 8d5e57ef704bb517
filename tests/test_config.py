"""Refusals: each message names the option, its value, the reason and the remedy, before a model is loaded."""

import pytest
from trl import DPOConfig

from trl_capo import CAPOTrainer

REFUSED = [
    ({"noise_rate": 0.7}, ["noise_rate=0.7", "[0, 0.5]", "'auto'"]),
    ({"noise_rate": -0.1}, ["noise_rate=-0.1"]),
    ({"noise_rate": "lots"}, ["noise_rate='lots'"]),
    ({"noise_rate": None}, ["noise_rate=None"]),
    ({"noise_rate": float("nan")}, ["noise_rate=nan"]),
    ({"noise_rate": True}, ["noise_rate=True"]),
    ({"confidence_temperature": 0.0}, ["confidence_temperature=0.0", "positive"]),
    ({"confidence_temperature": float("inf")}, ["confidence_temperature=inf"]),
    ({"beta": 0.0}, ["beta=0.0", "0.1"]),
    ({"ld_alpha": 1.5}, ["ld_alpha=1.5", "[0, 1]"]),
    ({"f_divergence_type": "hellinger"}, ["f_divergence_type='hellinger'", "js_divergence"]),
    ({"loss_type": ["ipo"]}, ["loss_type=['ipo']", "sigmoid", "noise_rate=0"]),
    ({"loss_type": ["sigmoid_norm"]}, ["loss_type=['sigmoid_norm']"]),
    ({"use_weighting": True}, ["use_weighting=True", "WPO", "noise_rate=0"]),
    ({"use_weighting": True, "noise_rate": 0, "loss_type": ["hinge"]}, ["use_weighting=True", "'hinge'", "in place"]),
    ({"loss_type": ["robust"], "noise_rate": 0.0, "label_smoothing": 0.5}, ["label_smoothing=0.5", "below 0.5"]),
    ({"label_smoothing": 0.2}, ["label_smoothing=0.2", "silence", "noise_rate=0.2", "robust"]),
    ({"enable_jit_checkpoint": True}, ["enable_jit_checkpoint=True", "SIGTERM", "Leave the option out"]),
]


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_be_used_is_refused_when_the_config_is_built(make_args, options, named):
    with pytest.raises(ValueError, match="CAPOConfig cannot be used as it is") as error:
        make_args(**options)
    for part in named:
        assert part in str(error.value)


def test_all_problems_come_in_one_error(make_args):
    with pytest.raises(ValueError, match="noise_rate=2") as error:
        make_args(noise_rate=2, beta=-1, ld_alpha=3, label_smoothing=0.1)
    for part in ("noise_rate=2", "beta=-1", "ld_alpha=3", "label_smoothing=0.1"):
        assert part in str(error.value)


@pytest.mark.parametrize(("given", "meant"), [("0.25", 0.25), (0, 0), (0.5, 0.5), ("auto", "auto")])
def test_noise_rate_may_be_text_as_on_a_command_line(make_args, given, meant):
    assert make_args(noise_rate=given).noise_rate == meant


@pytest.mark.parametrize("written", [None, "none", "None", "null"])
def test_groups_can_be_turned_off_in_yaml(make_args, written):
    assert make_args(group_column=written).group_column is None


def test_options_changed_after_the_config_was_built_are_checked_before_a_model_is_loaded(make_args, pairs):
    args = make_args()
    args.noise_rate = 0.9
    with pytest.raises(ValueError, match="noise_rate=0.9"):
        CAPOTrainer("no-such-model", args=args, train_dataset=pairs)


def test_a_dpo_config_is_refused_with_the_remedy(make_args, pairs):
    with pytest.raises(TypeError, match=r"args is a DPOConfig.*trl_capo\.CAPOConfig"):
        CAPOTrainer("no-such-model", args=make_args(DPOConfig), train_dataset=pairs)

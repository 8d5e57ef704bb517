"""The probe: hidden states, cross-fitted rewards, and the columns that they become."""

import json

import numpy as np
import pytest
import torch
from conftest import CPU_ARGUMENTS, logged, make_pairs, run_main
from oracles import load
from scipy.optimize import minimize

from trl_capo import CAPOTrainer
from trl_capo.audit.mislabels import auroc
from trl_capo.data.edit import swap_answers
from trl_capo.data.load import load_pairs
from trl_capo.data.tokenise import TokenisedPair
from trl_capo.scoring import annotate, probe
from trl_capo.scoring.annotate import ReferenceArguments
from trl_capo.train import command

PAIRS = [([9], [5, 6, 7], [8]), ([9, 10, 11], [5, 6, 7, 8], [8]), ([4, 4], [3], [7, 8, 9])]


@pytest.mark.parametrize(("batch_size", "max_length"), [(1, 5), (2, None), (8, 5)])
def test_states_are_those_of_each_answer_alone(model_dir, batch_size, max_length):
    """Of two layers, those at 1/2, 5/6 and 1 are the first, the second and the second; answers are cut at 5 tokens."""
    model = load(model_dir)
    found = probe.state_differences(model, [TokenisedPair(*pair) for pair in PAIRS], batch_size, max_length, "a model")
    for row, (prompt, *answers) in zip(found, PAIRS, strict=True):
        means = []
        for answer in answers:
            ids = torch.tensor([(prompt + answer)[:max_length]])
            layers = model(input_ids=ids, output_hidden_states=True).hidden_states
            means.append(torch.cat([layers[place][0, len(prompt) :].mean(dim=0) for place in (1, 2, 2)]))
        torch.testing.assert_close(row, means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_weights_minimise_the_penalised_loss():
    inputs = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3

    def loss(weights):
        return np.logaddexp(0, -inputs.numpy() @ weights).sum() + 0.35 * (weights**2).sum()

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    assert probe._fit(inputs, 0.7).numpy() == pytest.approx(expected, abs=1e-4)


def planted(rate, pairs=1200, features=40):
    """Random state differences in which feature 3 is the reward, and whether each label is flipped."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(pairs, features, generator=generator)
    states[:, 3] = states[:, 3].abs() + 0.5
    flipped = torch.rand(pairs, generator=generator) < rate
    return torch.where(flipped[:, None], -states, states), flipped.numpy()


@pytest.mark.parametrize(("rate", "least"), [(0.2, 0.97), (0.4, 0.85)])
def test_flipped_labels_have_the_lowest_margins(rate, least):
    states, flipped = planted(rate)
    assert auroc(-probe.cross_fitted_margins(states, torch.arange(1200)).numpy(), flipped) > least


def test_a_label_does_not_speak_for_itself():
    """If a label is flipped, its margin changes its sign, and hardly anything else; nor do repeated pairs speak."""
    states, prompts = planted(0.3, pairs=300)[0], torch.arange(300)
    before, margins = torch.get_rng_state(), probe.cross_fitted_margins(states, prompts)
    assert torch.equal(torch.get_rng_state(), before)  # training goes on with the same random numbers
    for row in (0, 7, 299):
        changed = probe.cross_fitted_margins(torch.where(prompts[:, None] == row, -states, states), prompts)
        assert float(changed[row]) == pytest.approx(-float(margins[row]), rel=1e-2)
    thrice = probe.cross_fitted_margins(torch.randn(100, 40).repeat(3, 1), torch.arange(100).repeat(3))
    assert abs(float((thrice > 0).float().mean()) - 0.5) < 0.2  # labels that follow no rule


def test_annotated_columns_follow_the_answers(model_dir):
    """A prompt that fills max_length gets null; swapped answers swap their scores; columns are replaced."""
    rows = make_pairs(60).add_column("probe_chosen", [9.0] * 60)
    rows = rows.map(lambda row, index: {"prompt": row["prompt"] + " x" * 50 * (index == 7)}, with_indices=True)
    found = annotate.annotate(rows, ReferenceArguments(model_dir, max_length=60))
    chosen, rejected = found["probe_chosen"][:], found["probe_rejected"][:]
    assert chosen[7] is rejected[7] is None
    assert all(a == -b for row, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if row != 7)
    assert max(abs(a) for a in chosen if a is not None) > 0
    assert swap_answers(found, np.array([3]))["probe_chosen"][3] == rejected[3]
    with pytest.raises(ValueError, match="19 pairs that fit are too few; give 20 or --annotate false"):
        annotate.annotate(make_pairs(19), ReferenceArguments(model_dir))


def test_training_annotates_by_itself_as_the_command_does(model_dir, tmp_path, make_args):
    make_pairs(60).to_json(tmp_path / "pairs.jsonl", force_ascii=False)
    data = ("--dataset_name", tmp_path / "pairs.jsonl", "--model_name_or_path", model_dir)
    code, out, errors = run_main(annotate.main, *data, "--output_dir", tmp_path / "annotated")
    assert code == 0, errors
    pairs = load_pairs(str(tmp_path / "annotated"))["train"]
    assert out.split("all pairs")[1].split()[:2] == ["60", str(sum(score < 0 for score in pairs["probe_chosen"]))]
    options = CPU_ARGUMENTS | {"max_steps": 3, "output_dir": str(tmp_path / "run"), "save_strategy": "steps"}
    words = [f"--{key}={value}" for key, value in options.items()]
    assert command.main([*map(str, data), *words, "--annotate"]) == 0
    (state,) = tmp_path.glob("run/checkpoint-*/trainer_state.json")
    found = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    trainer = CAPOTrainer(model_dir, args=make_args(max_steps=3, witness="probe"), train_dataset=pairs)
    trainer.train()
    assert found == logged(trainer, "loss")

"""What `trl-capo evaluate` measures: each kind of model, each shape of data, differences of models.

The oracle is pair_oracle.py: every pair scored alone with plain cross-entropy. The command line, its files and its
errors: test_evaluate_command.py. Not covered: the intervals' formulae (test_statistics.py), the hub.
"""

import shutil
import statistics

import numpy as np
import pytest
from conftest import CPU_ARGUMENTS, as_conversation
from pair_oracle import OPTIONS, mean, score_pairs
from scipy.stats import binomtest
from test_modes import load

from trl_capo import CAPOConfig, CAPOTrainer


@pytest.fixture(scope="module")
def trained_dir(model_dir, other_model_dir, pool, tmp_path_factory) -> str:
    """The tiny model, taught the pool's preferences against the other one."""
    folder = str(tmp_path_factory.mktemp("trained"))
    args = CAPOConfig(**CPU_ARGUMENTS | OPTIONS | {"noise_rate": 0, "max_steps": 24, "output_dir": folder})
    trainer = CAPOTrainer(load(model_dir), load(other_model_dir), args, train_dataset=pool)
    trainer.train()
    trainer.save_model()
    return folder


def the_model(figures: dict) -> dict:
    (model,) = figures["models"].values()
    return model


def assert_figures(model: dict, scored, tolerance=1e-4):
    """Of all pairs and of each group: counts, means, medians, ties, Wilson's intervals; macro means, worst groups."""
    groups = {}
    for group, figures in scored:
        groups.setdefault(str(group), []).append(figures)
    assert set(model["groups"]) == set(groups) - {"None"}
    parts = [(model["overall"], [figures for _, figures in scored])]
    parts += [(model["groups"][group], groups[group]) for group in model["groups"]]
    for found, pairs in parts:
        margins = [figures["rewards/margins"] for figures in pairs]
        expected = {"margin_mean": mean(margins), "margin_median": statistics.median(margins)}
        expected |= {"pairs": len(pairs), "ties": mean(figures["ties"] for figures in pairs)}
        for name, key in (("accuracy", "rewards/accuracies"), ("reference_free_accuracy", "reference_free")):
            successes = sum(figures[key] for figures in pairs)
            expected[name] = successes / len(pairs)
            interval = binomtest(int(successes), len(pairs)).proportion_ci(method="wilson")
            assert found[f"{name}_95"] == pytest.approx(list(interval), abs=1e-6)
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=tolerance, abs=tolerance)
    for name in ("accuracy", "reference_free_accuracy") if groups.keys() != {"None"} else ():
        values = {group: figures[name] for group, figures in model["groups"].items()}
        assert model["macro"][name] == pytest.approx(mean(values.values()))
        assert model["worst"][name]["value"] == min(values.values()) == values[model["worst"][name]["group"]]


@pytest.mark.parametrize("size", [1, 5, 24])
def test_a_full_checkpoint_and_its_reference(measured, model_dir, other_model_dir, pool, size):
    figures = measured(ref_model=other_model_dir, per_device_eval_batch_size=size, beta=0.4)
    assert_figures(the_model(figures), score_pairs(load(model_dir), load(other_model_dir), pool, beta=0.4))
    assert (figures["dataset"]["pairs"], figures["dropped_pairs"], figures["group_column"]) == (24, 0, "language")


def test_without_a_reference_there_are_reference_free_figures_only(measured, model_dir, pool):
    model = the_model(measured())
    scored = score_pairs(load(model_dir), load(model_dir), pool)
    assert model["reference"] is None
    for part in (model["overall"], *model["groups"].values()):
        assert [part[key] for key in ("accuracy", "accuracy_95", "margin_mean", "margin_median")] == [None] * 4
    assert model["overall"]["reference_free_accuracy"] == mean(figures["reference_free"] for _, figures in scored)


def test_the_figures_are_those_of_the_trainers_evaluation(measured, make_args, model_dir, other_model_dir, pool):
    args = make_args(beta=0.1, per_device_eval_batch_size=7)
    trainer = CAPOTrainer(load(model_dir), load(other_model_dir), args, train_dataset=pool, eval_dataset=pool)
    metrics, model = trainer.evaluate(), the_model(measured(ref_model=other_model_dir))
    for suffix, part in {"": model["overall"], **{f"/{name}": part for name, part in model["groups"].items()}}.items():
        assert part["accuracy"] == pytest.approx(metrics["eval_rewards/accuracies" + suffix], abs=1e-9)
        assert part["margin_mean"] == pytest.approx(metrics["eval_rewards/margins" + suffix], rel=1e-4, abs=1e-6)
    assert model["macro"]["accuracy"] == pytest.approx(metrics["eval_rewards/accuracies/macro"])
    assert model["worst"]["accuracy"]["value"] == pytest.approx(metrics["eval_rewards/accuracies/worst"])


def implicit(row: dict) -> dict:
    return {key: row["prompt"] + row[key] for key in ("chosen", "rejected")}


SHAPES = [
    "conversations",
    "implicit",
    "implicit conversations",
    "M-RewardBench",
    "no groups",
    "long prompts",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_data(measured, model_dir, other_model_dir, tmp_path, pool, shape):
    chat = "conversations" in shape
    rows = known = pool.map(as_conversation) if chat else pool
    if "implicit" in shape:
        rows = rows.map(implicit, remove_columns="prompt")
    elif shape == "M-RewardBench":
        columns = ("id", "subset", "chosen_model", "rejected_model", "source")
        rows = rows.remove_columns("id").map(lambda _, index: dict.fromkeys(columns, str(index)), with_indices=True)
    elif shape == "no groups":
        rows = known = rows.remove_columns("language")
    rows.to_parquet(tmp_path / "test.parquet")
    options = {"max_length": 30} if shape == "long prompts" else {}
    figures = measured(dataset_name=str(tmp_path), dataset_split="test", ref_model=other_model_dir, **options)
    limit = options.get("max_length", 10**6)
    scored = score_pairs(load(model_dir), load(other_model_dir), known, beta=0.1, limit=limit)
    assert_figures(the_model(figures), scored)
    assert figures["dropped_pairs"] == 24 - len(scored) == (4 if options else 0)
    assert figures["dropped_groups"] == []


def test_a_group_that_max_length_empties_is_named(measured):
    """Prompts in Japanese have 16 bytes and more."""
    figures = measured(max_length=16)
    assert figures["dropped_groups"] == ["日本"]
    assert list(the_model(figures)["groups"]) == ["de", "sw"]


def test_repeated_models_and_their_numbers_have_names_of_their_own(measured, model_dir, tmp_path, monkeypatch):
    """A folder may be called what the second A would be."""
    monkeypatch.chdir(tmp_path)
    for name in ("A", "A (2)"):
        shutil.copytree(model_dir, name)
    figures = measured(compare=["A", "A", "A (2)", "A"])
    assert list(figures["models"]) == ["A", "A (2)", "A (2) (2)", "A (3)"]
    assert len(figures["differences"]) == 3


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_a_model_does_not_differ_from_itself(measured, model_dir, other_model_dir, tmp_path, with_reference, copied):
    again = str(shutil.copytree(model_dir, tmp_path / "copy")) if copied else model_dir
    figures = measured(compare=[model_dir, again], ref_model=other_model_dir if with_reference else None)
    first, second = figures["models"].values()
    assert first == second
    (difference,) = figures["differences"].values()
    assert difference["measure"] == ("accuracy" if with_reference else "reference_free_accuracy")
    for part in (difference["overall"], difference["macro"], *difference["groups"].values()):
        assert (part["difference"], list(part["interval_95"]), part["beyond_chance"]) == (0, [0, 0], False)


def test_a_model_that_learned_the_pairs_is_better_beyond_chance(
    measured, model_dir, other_model_dir, trained_dir, pool
):
    """The interval, from another generator: the paired bootstrap of 10,000 resamples is right to about 0.01."""
    figures = measured(compare=[model_dir, trained_dir], ref_model=other_model_dir)
    models = [score_pairs(load(folder), load(other_model_dir), pool, beta=0.1) for folder in (model_dir, trained_dir)]
    for found, scored in zip(figures["models"].values(), models, strict=True):
        assert_figures(found, scored)
    changes = np.array(
        [b["rewards/accuracies"] - a["rewards/accuracies"] for (_, a), (_, b) in zip(*models, strict=True)]
    )
    (difference,) = figures["differences"].values()
    assert figures["models"].keys() - figures["differences"].keys() == {difference["against"]}
    overall = difference["overall"]
    assert overall["difference"] == pytest.approx(changes.mean())
    resampled = np.random.default_rng(7).choice(changes, (10_000, 24)).mean(axis=1)
    assert overall["interval_95"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.045)  # steps of 1/24
    assert overall["beyond_chance"]
    assert overall["interval_95"][0] > 0.2
    (back,) = measured(compare=[trained_dir, model_dir], ref_model=other_model_dir)["differences"].values()
    assert back["overall"]["difference"] == -overall["difference"]
    assert back["overall"]["beyond_chance"]
    for group, part in difference["groups"].items():
        values = [model["groups"][group]["accuracy"] for model in figures["models"].values()]
        assert part["difference"] == pytest.approx(values[1] - values[0])


def test_the_seed_decides_the_resampling(measured, model_dir, other_model_dir, trained_dir):
    asked = {"compare": [model_dir, trained_dir], "ref_model": other_model_dir}
    one, again, other = (measured(**asked, seed=seed) for seed in (3, 3, 4))
    assert one["differences"] == again["differences"]
    assert (one["seed"], other["seed"]) == (3, 4)
    assert one["models"] == other["models"]


def test_identical_policy_and_reference_have_no_accuracy(measured, model_dir):
    model = the_model(measured(ref_model=model_dir))
    for part in (model["overall"], *model["groups"].values()):
        assert (part["accuracy"], part["accuracy_95"], part["ties"], part["margin_mean"]) == (None, None, 1, 0)
    assert model["overall"]["reference_free_accuracy"] is not None


def test_a_model_without_accuracy_is_not_compared_as_if_it_had_one_of_0(measured, model_dir, other_model_dir):
    """One of the models is the reference, so that its pairs are all ties."""
    figures = measured(compare=[model_dir, other_model_dir], ref_model=other_model_dir)
    assert [model["overall"]["accuracy"] is None for model in figures["models"].values()] == [False, True]
    (difference,) = figures["differences"].values()
    assert difference["measure"] == "reference_free_accuracy" or difference["overall"]["difference"] is None

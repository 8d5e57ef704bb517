"""Whatever is given to a command, it works, or it ends with exit code 1 or 2 and one short, safe message, and nothing
is written: broken data, options and model folders through every command, before a model is loaded.
"""

import copy
import os
from pathlib import Path

import pytest
from broken_data import BROKEN, CHAT, CONTROLS, GOOD, HUGE, message
from broken_models import AS_LOADED, MODELS
from broken_options import FILES, PLANS, VALUES
from broken_places import NAMES, PLACES
from conftest import CPU_ARGUMENTS, make_pairs, save_tiny_model
from datasets import IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_data import ODD
from refusals import MAINS, refusal, write_yaml
from study_data import plan, save_splits

import trl_capo.data
from trl_capo import cli, train
from trl_capo.data import check_preference_data

EACH_TIME = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def good(tmp_path_factory, model_dir) -> dict[str, dict]:
    """The options of every command with which it would work; the output folder is below the present one."""
    data = tmp_path_factory.mktemp("good")
    make_pairs().to_json(data / "train.jsonl", force_ascii=False)
    splits = save_splits(tmp_path_factory.mktemp("splits"))
    own = {"model_name_or_path": model_dir, "dataset_name": str(data / "train.jsonl"), "output_dir": "out"}
    noise = {"dataset_name": own["dataset_name"], "output_dir": "out", "kind": "flip", "rate": 0.2}
    return {
        "train": own | CPU_ARGUMENTS,
        "evaluate": own,
        "noise": noise,
        "study": plan(model_dir, splits, Path("out")),
    }


@pytest.fixture(scope="module")
def read() -> dict:
    return {}


@pytest.fixture
def refused(good, read, tmp_path, capfd, monkeypatch):
    """The message of a command with other options. A data set is read once, and its outcome given to all commands."""
    load = trl_capo.data._load

    def load_once(*key):
        if key not in read:
            try:
                read[key] = load(*key)
            except Exception as error:
                read[key] = error
        if isinstance(read[key], Exception):
            raise read[key]
        return read[key]

    monkeypatch.setattr(trl_capo.data, "_load", load_once)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def call(command: str, **changes) -> str:
        return refusal(command, write_yaml(tmp_path, good[command] | changes), tmp_path, capfd)

    return call


def test_there_are_many_cases():
    options = sum(map(len, VALUES.values())) + len(PLANS)
    assert (len(BROKEN | PLACES) + len(NAMES) >= 150, options + len(FILES) >= 500, len(MODELS) >= 40) == (
        True,
        True,
        True,
    )


@pytest.mark.parametrize("case", BROKEN | PLACES)
def test_data(refused, tmp_path, case):
    (tmp_path / "data").mkdir()
    name = (BROKEN | PLACES)[case](tmp_path / "data")
    messages = {command: refused(command, dataset_name=name) for command in MAINS}
    if case.startswith("line 2: ") and case not in ("line 2: two objects", "line 2: NaN as text"):
        assert all("bad.jsonl, line 2" in message for message in messages.values()), messages


@pytest.mark.parametrize("case", NAMES)
def test_names_of_data_that_are_none(refused, case):
    """Whatever they try to reach, they are not found; `.` and `/` are there, and hold no data."""
    for command in MAINS:
        message = refused(command, dataset_name=NAMES[case])
        not_found = "there is no such" in message or "no data found there" in message
        assert not_found or case in ("dot", "slash", "hub address"), message


class Loading(Exception):
    pass


@pytest.mark.parametrize("case", ODD)
def test_odd_data_are_accepted_and_shown_safely(good, tmp_path, capfd, monkeypatch, case):
    """Noise is injected, a trainer is built, and an evaluation gets as far as the loading of its model."""
    (tmp_path / "odd.jsonl").write_text(ODD[case], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        train, "train", lambda trainer, dataset_name: len(trainer.train_dataset) or pytest.fail("no pairs")
    )

    def stop(args, source):
        raise Loading

    monkeypatch.setattr("trl_capo.evaluate.load_model", stop)
    options = {"dataset_name": "odd.jsonl", "max_length": None}
    assert MAINS["train"](write_yaml(tmp_path, good["train"] | options)) == 0
    with pytest.raises(Loading):
        MAINS["evaluate"](write_yaml(tmp_path, good["evaluate"] | options))
    capfd.readouterr()
    assert MAINS["noise"](write_yaml(tmp_path, good["noise"] | {"dataset_name": "odd.jsonl"})) == 0
    assert all(letter.isprintable() or letter == "\n" for letter in capfd.readouterr().out)


def test_half_a_surrogate_pair_in_a_stream_is_found_with_its_row():
    """Arrow holds none, so only rows made in Python can have one; tokenizers end with a TypeError there."""
    rows = [GOOD, GOOD, GOOD | {"chosen": "a\ud800"}, CHAT | {"prompt": [message("\udfff", "user")]}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match="surrogate") as error:
        check_preference_data(train=stream)
    found = [line for line in str(error.value).splitlines() if "surrogate" in line]
    assert [line.split(" has")[0] for line in found] == ["- train: chosen", "- train: prompt"]
    assert ["(row 2)" in found[0], "(row 3)" in found[1]] == [True, True]


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize("case", FILES)
def test_config_files(refused, tmp_path, capfd, command, case):
    content = FILES[case]
    (tmp_path / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(command, ["--config", str(tmp_path / "bad.yaml")], tmp_path, capfd)


@pytest.mark.parametrize(("command", "option"), sorted({(c, option) for c in VALUES for option, _ in VALUES[c]}))
def test_values_of_options(refused, command, option):
    for name, value in VALUES[command]:
        if name == option:
            message = refused(command, **{option: value})
            named = (option, "no data:", "give either model_name_or_path", "unexpected keyword argument")
            assert any(text in message for text in named), message


@pytest.mark.parametrize(
    "part", sorted({path for path, _ in PLANS}, key=str), ids=lambda path: "-".join(map(str, path))[:40]
)
def test_plans_of_a_study(refused, good, part):
    for path, value in PLANS:
        if path == part:
            options = copy.deepcopy(good["study"])
            place = options
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            refused("study", **options)


@pytest.mark.parametrize("case", MODELS)
def test_model_folders(refused, monkeypatch, tmp_path, case):
    save_tiny_model(tmp_path / "model", 0)
    MODELS[case](tmp_path / "model")
    monkeypatch.setattr("trl_capo.evaluate.load_model", None)
    for command in ("train", "evaluate"):
        assert str(tmp_path / "model") in refused(command, model_name_or_path=str(tmp_path / "model"))


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("case", AS_LOADED)
def test_model_folders_of_which_only_loading_tells(good, tmp_path, capfd, command, case):
    save_tiny_model(tmp_path / "model", 0)
    AS_LOADED[case](tmp_path / "model")
    changes = {"model_name_or_path": str(tmp_path / "model"), "output_dir": str(tmp_path / "out")}
    refusal(command, write_yaml(tmp_path, good[command] | changes), tmp_path, capfd, before_loading=False)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\u202e", "x" * 9999]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@EACH_TIME
@given(value=ANYTHING, option=st.sampled_from(["dataset_split", "kind", "rate", "score_column"]))
def test_any_value_of_an_option_of_noise(good, tmp_path_factory, capfd, option, value):
    folder = tmp_path_factory.mktemp("any")
    options = good["noise"] | {"dataset_split": "nosuch", "output_dir": str(folder / "out"), option: value}
    refusal("noise", write_yaml(folder, options), folder, capfd)


@EACH_TIME
@given(
    part=st.sampled_from(["methods", "noise", "grid", "learning_rates", "training", "lora", "tuning"]), value=ANYTHING
)
def test_any_value_in_the_plan_of_a_study(good, tmp_path_factory, capfd, part, value):
    folder = tmp_path_factory.mktemp("any")
    options = good["study"] | {"dataset_name": "./nosuch", "output_dir": str(folder / "out"), part: value}
    refusal("study", write_yaml(folder, options), folder, capfd)


@EACH_TIME
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_config_file(tmp_path_factory, capfd, content):
    folder = tmp_path_factory.mktemp("any")
    (folder / "any.yaml").write_bytes(content)
    for command in ("noise", "study"):
        refusal(command, ["--config", str(folder / "any.yaml")], folder, capfd)


@pytest.mark.parametrize("command", MAINS)
def test_the_whole_command_refuses_with_one_message(tmp_path, capfd, monkeypatch, command):
    """As the installed command does, whose checks come before anything is launched."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("nosuch: a\nnosuch: b\n")
    assert cli.main([command, "--config", "bad.yaml"]) == 2
    said = f"trl-capo {command}: error: config='bad.yaml' is not valid YAML: line 2, column 1: 'nosuch' comes twice.\n"
    assert capfd.readouterr() == ("", said)
    assert os.listdir() == ["bad.yaml"]


@pytest.mark.parametrize(
    "words", [[], ["nosuch"], [CONTROLS], [HUGE], ["train", "--num_processes", "many"], ["evaluate", "--nosuch", HUGE]]
)
def test_the_whole_command_refuses_wrong_words(capfd, words):
    assert cli.main(words) == 2
    message = capfd.readouterr().err
    assert message.count("error: ") == 1
    assert len(message) < 1000
    assert all(letter.isprintable() or letter == "\n" for letter in message)

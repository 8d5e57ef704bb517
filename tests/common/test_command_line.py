"""Options from the command line and YAML files, and how mistakes end."""

import os
from dataclasses import dataclass, field

import pytest

from trl_capo.common.command import need, parse, parse_with_rest, run, versions


@dataclass
class Arguments:
    beta: float = 0.1
    names: list[str] = field(default_factory=list)
    output_dir: str | None = None
    quick: bool = False


@dataclass
class Others:
    seed: int = 0


TYPES = (Arguments, Others)


@pytest.fixture
def config(tmp_path):
    """Write a YAML file and return the words that name it."""

    def write(text: str) -> list[str]:
        (tmp_path / "run.yaml").write_text(text)
        return ["--config", str(tmp_path / "run.yaml")]

    return write


def test_the_command_line_overrides_the_file_whose_section_env_sets_the_environment(config, monkeypatch):
    monkeypatch.setenv("CAPO_TEST", "before")
    words = config("env: {CAPO_TEST: 3}\nbeta: 1e-2\nnames: [a, b]\nseed: 4\noutput_dir: x")
    assert parse([*words, "--seed", "5", "--quick"], TYPES, "p") == (Arguments(0.01, ["a", "b"], "x", True), Others(5))
    assert parse(["=".join(words)], TYPES, "p")[1] == Others(4)
    assert os.environ["CAPO_TEST"] == "3"


@pytest.mark.parametrize("place", ["file", "command line"])
def test_an_unknown_option_is_refused_with_the_nearest_one(config, place):
    words = config("outputdir: x") if place == "file" else ["--outputdir", "x"]
    with pytest.raises(ValueError, match="no option --outputdir. Did you mean --output_dir"):
        parse(words, TYPES, "p")


@pytest.mark.parametrize("words", [["--beta", "high"], ["stray"], ["--config", "/no/such/file.yaml"]])
def test_unusable_words_and_files_are_named(config, words):
    with pytest.raises((ValueError, OSError), match=words[-1]):
        parse(words, TYPES, "p")
    with pytest.raises(ValueError, match="not valid YAML"):
        parse(config("beta: [1"), TYPES, "p")


def test_options_of_the_launcher_are_returned_apart(config):
    words = [*config("num_processes: 2\nseed: 3"), "--multi_gpu", "--beta", "2", "--mixed_precision", "no"]
    parsed, rest = parse_with_rest(words, TYPES, "p")
    assert parsed == (Arguments(beta=2.0), Others(3))
    assert rest == ["--num_processes", "2", "--multi_gpu", "--mixed_precision", "no"]
    with pytest.raises(ValueError, match="--num_processes"):
        parse(words, TYPES, "p")
    with pytest.raises(ValueError, match="--num_processe. Did you mean --num_processes"):
        parse_with_rest(["--num_processe", "2"], TYPES, "p")


def test_mistakes_end_with_one_message_and_exit_code_2(capsys, monkeypatch):
    def fail(error: Exception) -> None:
        raise error

    assert run("trl-capo x", fail, ValueError("bad\x1b[1m value")) == 2
    assert capsys.readouterr().err == "trl-capo x: error: bad\\x1b[1m value\n"
    monkeypatch.setenv("RANK", "1")
    assert run("trl-capo x", fail, ValueError("bad")) == 2
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyError):
        run("trl-capo x", fail, KeyError("a bug"))
    assert (run("trl-capo x", lambda: None), run("trl-capo x", lambda: 143)) == (0, 143)


def test_missing_packages_are_named_with_the_extra():
    with pytest.raises(ValueError, match=r"no_such_package not installed.*trl-capo\[report\]"):
        need("json", "no_such_package")
    assert versions()["trl"]

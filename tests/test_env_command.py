"""`trl-capo env` is TRL's, and one line."""

import pytest
from trl.scripts.env import print_env

from trl_capo import __version__, cli


def test_it_is_what_trl_prints_and_our_version(capfd):
    capfd.readouterr()
    print_env()
    expected = capfd.readouterr().out.strip().splitlines()
    assert cli.main(["env"]) == 0
    *theirs, ours = capfd.readouterr().out.strip().splitlines()
    assert theirs == expected
    assert ours.startswith(f"- trl-capo version: {__version__}")


def test_it_takes_no_options(capfd):
    with pytest.raises(SystemExit) as stop:
        cli.main(["env", "--nosuch"])
    assert stop.value.code == 2

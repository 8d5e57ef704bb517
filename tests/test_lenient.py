"""Options are left out one by one, each with the mistake that it makes."""

from trl_capo.lenient import by_option, leave_out


def reader(order: list[str]):
    """Stops at the first of these options that is there, as readers do; the last two only make a mistake together."""

    def read(options: dict[str, int]) -> int:
        for name in order:
            if name in options:
                raise ValueError(f"{name} is wrong" if name != "c" else "something is wrong")
        if {"x", "y"} <= options.keys():
            raise OSError
        return sum(options.values())

    return read


def test_what_is_left_can_be_used():
    options = {"d": 1, "a": 2, "c": 4, "e": 8, "x": 16, "y": 32}
    told = ["a is wrong", "something is wrong", "d is wrong", "OSError"]
    assert leave_out(options, reader(["a", "c", "d"])) == (8 + 32, told)
    assert list(options) == ["d", "a", "c", "e", "x", "y"]


def test_a_mistake_of_no_option_ends_it():
    def read(options):
        raise ValueError("broken" if options else "nothing left")

    assert leave_out({"a": 1, "b": 2}, read) == (None, ["broken"])
    assert leave_out({}, read) == (None, ["nothing left"])


def test_words_are_told_apart_by_their_options():
    words = ["word", "--a", "1", "2", "--b=3", "--a", "4"]
    assert by_option(words) == {"": ["word"], "a": ["--a", "1", "2", "--a", "4"], "b": ["--b=3"]}

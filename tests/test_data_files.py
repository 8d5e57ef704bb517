"""Which line of which file cannot be read, and why: against lines broken by hand. More: test_broken_input.py."""

import gzip
import json

import pytest
from broken_data import GOOD, WHOLE, in_folder, json_lines, nested

from trl_capo.data_files import builder_of, first_problem, refuse_unsafe_lines

LINE = json.dumps(GOOD)
LISTED = json.dumps([GOOD, GOOD], indent=1)

PROBLEMS = [
    ("a.jsonl", f"{LINE}\n\n{LINE}\n{{broken\n", "line 4: column 2: not JSON"),
    ("a.jsonl", "{broken\n" + LINE, "line 1, column 2: not JSON"),
    ("a.jsonl", f"[1]\n{LINE}", "line 1: it is not an object"),
    ("a.jsonl", f"{LINE}\n[1]", "line 2: it is not an object"),
    ("a.jsonl", f"{LINE}\n{{\"a\": 1, \"a\": 2}}", "line 2: the key 'a' comes twice"),
    ("a.jsonl", f"{LINE}\n{{\"a\": \"\\ud800\"}}", r"line 2: half of a surrogate pair ('\ud800')"),
    ("a.jsonl", f"{LINE}\n".encode() + b'{"a": "\xe4"}', "line 2: it is not UTF-8 (invalid continuation byte 0xe4 at"),
    ("a.jsonl", f"{LINE}\r{LINE}\r\n{LINE}\r{{broken\r", "line 4: column 2: not JSON"),
    ("a.jsonl", f'{LINE}\n{{"a": {"9" * 5000}}}', "line 2: a number has too many digits"),
    ("a.json", LISTED.replace("}", "", 1), "line 8, column 2: not JSON"),
    ("a.json", '[{"a": 1}, 2]', "entry 1: it is not an object"),
    ("a.json", LISTED.replace('"language"', '"chosen"'), "line 6: the key 'chosen' comes twice"),
    ("a.json", '[{"a": {"b": "\\"b\\": {"}},\n {"a": {"b": 1,\n "b": 2}}\n]', "line 3: the key 'b' comes twice"),
    ("a.json", LISTED.encode("utf-16"), "line 1: it is UTF-16 or UTF-32"),
    ("a.csv", b"a,b\n1,2\n\xe4,2", "line 3: it is not UTF-8"),
    ("a.jsonl.gz", gzip.compress(f"{LINE}\nbroken".encode()), "line 2: column 1: not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), PROBLEMS, ids=range(len(PROBLEMS)))
def test_the_first_line_that_cannot_be_read_is_found_in_file_and_folder(tmp_path, name, content, said):
    files = {"0.jsonl": json_lines([GOOD]), f"deep/{name}": content, "other.parquet": WHOLE, "z.json": "{"}
    folder = tmp_path / "data"
    assert in_folder(files)(tmp_path) == str(folder)
    for path in (folder, folder / "deep" / name):
        assert first_problem(path).startswith(f"{folder / 'deep' / name}, {said}")


@pytest.mark.parametrize("content", [LINE, LISTED, json.dumps(GOOD, indent=2), f"\ufeff{LINE}\r\n", "", "\n \n", "[]"])
def test_what_can_be_read_has_no_problem(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert first_problem(tmp_path) is None
    refuse_unsafe_lines(tmp_path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("null", 1),
        (f"{LINE}\nnull\n", 2),
        ("[null]", 1),
        (f"[ null, {LINE}]", 1),
        ("\ufeff null ", 1),
        ("\n\nnull", 3),
        (" " * 20 + "null\n" + LINE, 1),
        ("[" + " " * 20 + f"null, {LINE}]", 1),
        ("[\n" + " " * 30 + f"null, {LINE}]", 2),
        (f"null {{}}\n{LINE}", 1),
        (f"null}}\n{LINE}", 1),
        (f"null]\n{LINE}", 1),
        (f"null\r{LINE}", 1),
        (f"{LINE}\rnull", 2),
    ],
)
def test_null_is_found_before_it_ends_the_process(tmp_path, content, line):
    """`datasets` would give it to pyarrow, which dies of it with signal 11."""
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line {line}: null is not an object"):
        refuse_unsafe_lines(tmp_path)


def test_readers_by_name(tmp_path):
    names = {
        "a.jsonl": "json",
        "a.JSON.GZ": "json",
        "a.b.csv": "csv",
        "a.parquet.zst": "parquet",
        "a.txt": None,
        "a": None,
    }
    assert {name: builder_of(tmp_path / name) for name in names} == names


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n", "line 1: the column 'chosen' comes twice"),
        ("a.csv", '\n"prompt","chosen",rejected,"prompt"\na,b,c,d\n', "line 2: the column 'prompt' comes twice"),
        (
            "a.csv.gz",
            gzip.compress(b"\xef\xbb\xbfchosen,rejected,chosen\na,b,c\n"),
            "line 1: the column 'chosen' comes",
        ),
        ("a.tsv", "prompt\tchosen\tchosen\na\tb\tc\n", "line 1: the column 'chosen' comes twice"),
        ("b/c/d/a.json", '[{"a": 1,\n"b": 1,\n"a": 2}]', "line 3: the key 'a' comes twice"),
        ("a.json", '{"a": [1, {"b": 1,\n"b": 2}]}', "line 2: the key 'b' comes twice"),
    ],
    ids=range(6),
)
def test_what_is_said_twice_is_refused_before_a_reader_takes_one_of_them(tmp_path, name, content, said):
    folder = in_folder({"0.jsonl": json_lines([GOOD]), name: content})(tmp_path)
    with pytest.raises(ValueError, match=f"/{name}, {said}"):
        refuse_unsafe_lines(tmp_path / "data")
    assert folder


def test_what_only_looks_as_if_said_twice_is_not_refused(tmp_path):
    """Columns without names, keys of different objects, and keys within text."""
    json_text = '[{"a": "\\"b\\": {", "b": {"a": 1}},\n {"a": 2, "b": "\\"a\\": 1"}]'
    in_folder({"a.csv": ",chosen,\n1,b,2\n", "b.csv": "Chosen,chosen\na,b\n", "c.json": json_text})(tmp_path)
    refuse_unsafe_lines(tmp_path / "data")


def objects(depth: int) -> str:
    return nested(depth, '{"a":', "1", "}")


@pytest.mark.parametrize("depth", [61, 20_000, 200_000])
@pytest.mark.parametrize(
    ("before", "cell", "after", "line"),
    [
        (f'{LINE}\n{{"a": ', objects, "}\n", 2),
        (f'{LINE}\n{{"a": ', nested, "}\n", 2),
        ('{"a": "}]}]", "b": ', objects, "}", 1),
        ('[\n{"a": ', objects, "}\n]", 2),
        ('[\n{"a": ', lambda depth: nested(depth).replace("[", "[\n"), "}\n]", 60),
    ],
    ids=range(5),
)
def test_what_is_nested_deep_is_found_before_it_ends_the_process(tmp_path, before, cell, after, line, depth):
    """pyarrow dies of 20,000 objects in one line, and of 200,000 lists, with signal 11."""
    (tmp_path / "a.json").write_text(before + cell(depth) + after)
    with pytest.raises(ValueError, match=f"a.json, line {line}: it is nested too deeply"):
        refuse_unsafe_lines(tmp_path)


def test_neither_brackets_in_text_nor_many_lines_that_are_cut_are_deep(tmp_path):
    row = json.dumps(GOOD | {"chosen": '[{"' * 100 + "\\", "rejected": [{"a": [[]]}] * 50})
    (tmp_path / "a.jsonl").write_text(f"{row}\n" * 3)
    refuse_unsafe_lines(tmp_path)
    (tmp_path / "a.jsonl").write_text(f"{LINE}\n" + f"{LINE[:-1]}\n" * 100)
    with pytest.raises(ValueError, match="a.jsonl, line 2: column .*: not JSON"):
        refuse_unsafe_lines(tmp_path)


def test_every_file_that_a_reader_would_find_is_looked_at_and_no_other(tmp_path):
    content = "null\n" + LINE
    for name in ("a/b/c/d.jsonl", "d.ndjson", "d.JSONL"):
        folder = tmp_path / name.replace("/", "-")
        in_folder({"0.jsonl": json_lines([GOOD]), name: content})(folder)
        with pytest.raises(ValueError, match=rf"/{name}, line 1: null is not an object"):
            refuse_unsafe_lines(folder)
    in_folder({".cache/a.jsonl": content, "__pycache__/a.jsonl": content, "a.txt": content})(tmp_path / "hidden")
    refuse_unsafe_lines(tmp_path / "hidden")
    text = tmp_path / "hidden" / "data" / "a.txt"
    refuse_unsafe_lines(text)
    with pytest.raises(ValueError, match=r"a\.txt, line 1: null is not an object"):
        refuse_unsafe_lines(text, reader="json")
    assert (
        first_problem(text, reader="json") == f"{text}, line 1: it is not an object with the columns' names and values"
    )


def test_a_cut_line_of_quotes_takes_no_longer_than_others(tmp_path):
    """With a search that starts anew at every quote, 80 kB took 40 seconds, and this would take a week."""
    file = tmp_path / "a.jsonl"
    file.write_text(LINE + '\n{"chosen": "' + '\\"' * 5_000_000)
    refuse_unsafe_lines(tmp_path)
    assert first_problem(tmp_path).startswith(f"{file}, line 2: column 12: not JSON: Unterminated string")


def test_what_only_its_reader_can_open_is_left_to_it(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(8))
    refuse_unsafe_lines(tmp_path)
    assert first_problem(tmp_path) is None

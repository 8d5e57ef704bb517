"""The page of suspects: its source, and what it does in a browser, if Playwright and Chromium are installed."""

import json
import shlex
import shutil
from html.parser import HTMLParser

import pytest

from trl_capo.audit.suspects import STATISTICS, TEXTS, write_page
from trl_capo.common.command import parse
from trl_capo.data.clean import CleanArguments
from trl_capo.data.edit import EditArguments

FINGERPRINT = "5eed" * 16
COMMAND = "trl-capo clean --dataset_name='my pairs.jsonl' --output_dir=cleaned --decisions=decisions.jsonl"
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "<!-- <script> \"double\" 'single' `back` ${alert(3)} {{ 7 * 7 }} &lt; &amp;",
    "line\u2028and\u2029paragraph",
    "turned \u202e round \x00 \x1b[31m \x7f",
]


def suspect(index, text="Yes.", group="en"):
    """A row in which every text is the same."""
    row = {"pair": 10 * index, "id": text, "group": group, "score": 1 - index / 10000, "rank": index + 1}
    row |= {"suggestion": "look", "reasons": [text]} | dict.fromkeys(TEXTS, text)
    return row | dict.fromkeys(STATISTICS, 0.25) | {"forgetting": 1, "epochs": 3}


def write(folder, suspects, title="Suspects of a run", group_name="language", sizes=None, fingerprint=FINGERPRINT):
    shown = {"title": title, "fingerprint": fingerprint, "groupName": group_name, "counts": sizes or {}}
    write_page(folder / "suspects.html", suspects, **shown, command=COMMAND)
    return folder / "suspects.html"


class Elements(HTMLParser):
    """The elements of a page as [name, attributes, text directly in it]."""

    def __init__(self, path):
        super().__init__()
        self.found = [["", {}, ""]]
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        self.found[-1][2] += data


def test_hostile_texts_come_back_from_the_data_and_no_element_is_added_or_refers_to_a_file(tmp_path):
    path = write(tmp_path, [suspect(0)])
    plain = [element[:2] for element in Elements(path).found]
    assert not {"src", "href", "style", "action"} & {name for _, attributes in plain for name in attributes}
    signs = ("://", "url(", "@import", "fetch(", "import(", "innerHTML")
    assert not [sign for sign in signs if sign in path.read_text(encoding="utf-8")]
    rows = [suspect(index, text, text) for index, text in enumerate(HOSTILE)]
    page = Elements(write(tmp_path, rows, title=HOSTILE[1], group_name=HOSTILE[0], sizes={HOSTILE[2]: 1})).found
    assert [element[:2] for element in page] == plain
    data = json.loads(next(content for _, attributes, content in page if attributes.get("id") == "data"))
    assert data["suspects"] == rows
    assert (data["title"], data["groupName"], data["counts"]) == (HOSTILE[1], HOSTILE[0], {HOSTILE[2]: 1})


@pytest.mark.parametrize(("id", "trusted"), [("plain", False), ("trusted", True)])
def test_the_commands_shown_after_an_export_are_commands_of_clean(tmp_path, id, trusted):
    page = Elements(write(tmp_path, [suspect(0)])).found
    words = shlex.split(next(content for _, attributes, content in page if attributes.get("id") == id))
    assert words[:5] == shlex.split(COMMAND)
    _, options = parse(words[2:], (EditArguments, CleanArguments), "trl-capo clean")
    assert (options.decisions, options.trusted, options.suspects) == ("decisions.jsonl", trusted, None)


@pytest.fixture
def open_page(tmp_path):
    """Open a page of suspects; afterwards no dialog, error or request may have occurred."""
    sync_api, troubles = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed"), []
    with sync_api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", playwright.chromium.executable_path)
        found = next(filter(None, map(shutil.which, names)), None)
        if found is None:
            pytest.skip("neither Chromium nor Chrome is installed")
        with playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as browser:
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
            context.on("weberror", lambda error: troubles.append(str(error.error)))
            context.on("request", lambda request: troubles.append(request.url))

            def open_page(suspects, **changes):
                page = context.new_page()
                page.goto(write(tmp_path, suspects, **changes).as_uri())
                return page

            yield open_page
    assert [trouble for trouble in troubles if not trouble.startswith(("file:", "blob:"))] == []


def export(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    with page.expect_download() as download:
        page.keyboard.press("e")
    return download.value.path().read_text(encoding="utf-8")


def lines(**decisions):
    texts = [{"pair": int(pair[1:]), "fingerprint": FINGERPRINT, "decision": what} for pair, what in decisions.items()]
    return "".join(json.dumps(text, separators=(",", ":")) + "\n" for text in texts)


@pytest.mark.slow
def test_decisions_are_made_undone_exported_kept_and_imported(open_page, tmp_path):
    """Keep; flip; drop, which is undone from the fourth pair, then flip; the fourth is left; keep the fifth."""
    page = open_page([suspect(i) for i in range(5)])
    expected = lines(_0="keep", _10="flip", _20="flip", _40="keep")
    assert export(page, "k", "f", "d", "u", "F", "ArrowDown", "k") == expected
    assert page.text_content("#name").startswith("#4 ")
    again = open_page([suspect(i) for i in (1, 3)])
    assert again.text_content("#decided") == "decided 1 of 2"
    assert open_page([suspect(1)], fingerprint="0" * 64).text_content("#decided") == "decided 0 of 1"
    (tmp_path / "earlier.jsonl").write_text(lines(_10="drop", _990="flip"))
    again.set_input_files("#file", tmp_path / "earlier.jsonl")
    again.locator("#status", has_text="Imported 2 decisions.").wait_for()
    assert export(again) == lines(_0="keep", _10="drop", _20="flip", _40="keep", _990="flip")


@pytest.mark.slow
def test_texts_are_shown_as_text_in_their_direction_and_language(open_page):
    rows = [suspect(index, text, text) for index, text in enumerate(HOSTILE)]
    rows += [suspect(9, "ما هي عاصمة المغرب؟", "ar"), suspect(10, group="zho_Hant")]
    page = open_page(rows, title=HOSTILE[1])
    for text in HOSTILE:
        shown = text.translate({0: "␀", 0x1B: "␛", 0x7F: "␡", 0x202E: r"\u202e"})
        assert [page.text_content(f"#{id}") for id in ("prompt", "chosen", "rejected")] == [shown] * 3
        page.keyboard.press("n")
    style = "[getComputedStyle(document.getElementById('chosen')).direction, document.getElementById('chosen').lang]"
    assert page.evaluate(style) == ["rtl", "ar"]
    page.keyboard.press("n")
    assert page.evaluate(style) == ["ltr", "zh-Hant"]
    assert page.locator(".text img, .text script, #list img, #list script, h1 *").count() == 0


@pytest.mark.slow
def test_a_language_is_worked_through_by_keyboard_and_undone_after_a_reload(open_page):
    """Of 40 pairs, the odd ranks are Arabic; #1 is decided before the filter, #3 under it."""
    page = open_page([suspect(i, group=("ar", "en")[i % 2]) for i in range(40)])

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
        return page.text_content("#name").split()[0], page.text_content("#decided")

    assert press("k", "g", "a", "Escape") == ("#3", "decided 1 of 40 · 1 of 20 in view")
    assert press("f") == ("#5", "decided 2 of 40 · 2 of 20 in view")
    page.reload()
    assert press("g", "e", "Escape", "u") == ("#2", "decided 2 of 40 · 0 of 20 in view")
    assert page.text_content("#status") == "The filter hides pair 20, the last one decided."
    assert press("g", "Home", "Escape", "u", "u") == ("#1", "decided 0 of 40")
    assert press(*"k" * 39) == ("#40", "decided 39 of 40")
    page.reload()
    assert page.get_by_role("listbox").get_by_role("option", selected=True).get_attribute("id") == "row-39"
    assert page.get_attribute("#list", "aria-activedescendant") == "row-39"
    export(page)
    page.get_by_role("dialog", name="Exported 39 decisions").get_by_role("button", name="Copy").last.press("Enter")
    press("k", "Escape", "/", "Control+v")
    assert page.input_value("#search") == page.text_content("#trusted")
    assert press("Enter", "k")[1] == "decided 39 of 40 · 0 of 0 in view"

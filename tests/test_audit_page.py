"""What is in the page of suspects, read without a browser; what it does in one: test_audit_page_*.py."""

import base64
import hashlib
import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from page_data import HOSTILE, suspect, write


class Elements(HTMLParser):
    """The page's elements as (name, attributes, text directly in it), read by another parser than a browser's."""

    def __init__(self, path):
        super().__init__()
        self.found, self.inside = [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        self.inside = True

    def handle_data(self, data):
        if self.inside:
            self.found[-1][2] += data

    def handle_endtag(self, tag):
        self.inside = False

    def named(self, name):
        return [(attributes, text) for tag, attributes, text in self.found if tag == name]


def data_of(path):
    (_, text), _ = Elements(path).named("script")
    return json.loads(text)


@given(st.text(st.characters(), max_size=30) | st.sampled_from(HOSTILE))
def test_any_text_comes_back_from_the_data(tmp_path_factory, text):
    row = suspect(0, group=text, prompt=text, chosen=text, rejected=text, id=text, reasons=[text])
    path = write(tmp_path_factory.getbasetemp(), [row], title=text, group_name=text, counts={text: 3})
    data = data_of(path)
    assert data["suspects"] == [{"epochs": 3} | row]
    assert (data["title"], data["groupName"], data["counts"]) == (text, text, {text: 3})


def test_numbers_that_are_not_finite_are_missing(tmp_path):
    path = write(tmp_path, [suspect(0, score=float("nan"), area_under_margin=float("-inf"))])
    assert [data_of(path)["suspects"][0][name] for name in ("score", "area_under_margin")] == [None, None]


def test_hostile_texts_add_no_element(tmp_path):
    plain = Elements(write(tmp_path, [suspect(0)], title="plain"))
    hostile = [suspect(i, group=text, prompt=text, chosen=text, id=text) for i, text in enumerate(HOSTILE)]
    path = write(tmp_path, hostile, title="</title><script>", group_name="</script>", counts={"<": 1})
    assert [(name, attributes) for name, attributes, _ in Elements(path).found] == [
        (name, attributes) for name, attributes, _ in plain.found
    ]


def test_the_policy_names_the_one_style_and_script_and_nothing_else(tmp_path):
    page = Elements(write(tmp_path, [suspect(0)]))
    (style,), (data, script) = page.named("style"), page.named("script")
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in (style, script)]
    (policy,) = [meta["content"] for meta, _ in page.named("meta") if "http-equiv" in meta]
    assert data[0]["type"] == "application/json"
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_refers_to_another_file(tmp_path):
    path = write(tmp_path, [suspect(0)])
    page = Elements(path)
    assert not {name for _, attributes, _ in page.found for name in attributes} & {"src", "href", "style", "action"}
    assert not {name for name, _, _ in page.found} & {"link", "img", "iframe", "base", "object", "a"}
    text = path.read_text(encoding="utf-8")
    assert not [sign for sign in ("://", "url(", "@import", "fetch(", "import(", "innerHTML") if sign in text]

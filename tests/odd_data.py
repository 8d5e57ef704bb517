"""Preference data that are odd and can be used: ODD maps a case's name to the content of a JSONL file."""

import json

from broken_data import CHAT, CONTROLS, GOOD, HUGE, LINES, RIGHT_TO_LEFT, json_lines, message, rows_with

PARTS = {
    "prompt": [message([{"type": "text", "text": "Say it"}], "user")],
    "chosen": [message([{"type": "text", "text": "yes"}])],
    "rejected": [message([{"type": "text", "text": "no"}])],
}
ODD: dict[str, str] = {
    "right-to-left marks": rows_with(chosen=f"{RIGHT_TO_LEFT}نعم", language="ar"),
    "emoji of several characters": rows_with(chosen="👨‍👩‍👧🏽 🇩🇪"),
    "huge text": rows_with(chosen=HUGE),
    "control characters": rows_with(chosen="a\x00\x1b[2J\x07\x7f"),
    "noncharacters": rows_with(chosen="\ufdd0\uffff\U0010ffff"),
    "replacement characters": rows_with(chosen="\ufffd\ufeff"),
    "a pair of surrogate escapes": rows_with().replace("no", "\\ud83d\\ude00"),
    "combining marks": rows_with(chosen="e" + "\u0301" * 500),
    "only spaces": rows_with(rejected=" \n\t"),
    "an empty prompt": rows_with(prompt=""),
    "line separators": rows_with(chosen="a\u2028b\u2029c\x85d\x0be"),
    "markup": rows_with(chosen="</s><s><pad>{{ 7 * 7 }}{% raw %}"),
    "missing groups": rows_with(language=None),
    "unsafe groups": rows_with(language=RIGHT_TO_LEFT + CONTROLS),
    "huge groups": rows_with(language=HUGE),
    "mixed groups": rows_with(language=3),
    "unsafe columns": rows_with(**{RIGHT_TO_LEFT + CONTROLS[:5]: 1, "": 2, "a.b": 3, HUGE[:5000]: 4}),
    "columns of other types": rows_with(score={"a": [1, {"b": None}]}, when=1e300),
    "byte order mark": "\ufeff" + LINES,
    "Windows line ends": LINES.replace("\n", "\r\n"),
    "blank lines": "\n\n" + LINES.replace("\n", "\n\n"),
    "no last line end": LINES.rstrip("\n"),
    "a JSON list": json.dumps([GOOD] * 3),
    "a JSON list over lines": json.dumps([GOOD] * 3, indent=2),
    "objects over lines": json.dumps(GOOD, indent=2) + "\n" + json.dumps(GOOD, indent=2),
    "an object": json.dumps(GOOD),
    "messages of parts": json_lines([PARTS] * 3),
    "messages of tools": json_lines(
        [CHAT | {"chosen": [message(None) | {"tool_calls": [{"type": "function", "function": {"name": "f"}}]}]}] * 3
    ),
    "one row": json_lines([GOOD]),
    "no prompt": json_lines([{"chosen": "Say it: yes", "rejected": "Say it: no"}] * 3),
}

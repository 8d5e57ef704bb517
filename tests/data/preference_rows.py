"""Preference pairs in every format for the tests of `trl_capo.data`; each row is recognisable by its number."""

from datasets import Dataset

LANGUAGES = ("de", "sw", "日本")
ANSWERS = ("chosen", "rejected")


def standard(index: int) -> dict:
    """Answers that no two rows share, and questions that three rows of three languages share."""
    language = LANGUAGES[index % 3]
    prompt = f"Question {index // 3} in {language}: "
    answers = {"chosen": f"gut {language} {index}", "rejected": f"schlecht {index}"}
    return {"prompt": prompt, **answers, "language": language, "id": index, "margin": float(index % 7 - 3)}


def conversation(index: int) -> dict:
    row = standard(index)
    system = {"role": "system", "content": f"Answer in {row['language']}."}
    prompt = [system, {"role": "user", "content": f"{index // 3}?"}]
    return row | {"prompt": prompt} | {key: [{"role": "assistant", "content": row[key]}] for key in ANSWERS}


def implicit(index: int) -> dict:
    row = standard(index)
    prompt = row.pop("prompt")
    return row | {key: prompt + row[key] for key in ANSWERS}


FORMATS = (standard, conversation, implicit)


def make_data(form=standard, rows=3000) -> Dataset:
    return Dataset.from_list([form(index) for index in range(rows)])


def noisy_rows(dataset: Dataset) -> set[int]:
    return {index for index, noisy in enumerate(dataset["is_noisy"]) if noisy}

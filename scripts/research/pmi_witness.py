"""Measure how well a reference ranks the demo's training pairs, and write the witness `pmi` into the data.

    python scripts/research/pmi_witness.py [--model demo/study/model] [--data demo/study/data] [--pairs 2400]

The null of a pair is the log-probability of its answers under the prompt of another pair of the same language, the
next one in a seeded order. Domain-conditional PMI (Holtzman et al. 2021, arXiv 2104.08315) is raw - null. The columns
`pmi_chosen` and `pmi_rejected` of train.jsonl, in nats per root of the number of tokens, are for `witness: pmi`.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from trl_capo.audit.mislabels import auroc
from trl_capo.data.tokenise import tokenise_all
from trl_capo.scoring.models import answer_log_probs, load_model, resolve_model

MAX_LENGTH, BATCH_SIZE = 96, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("model", "demo/study/model"), ("data", "demo/study/data"), ("pairs", 2400)):
        parser.add_argument(f"--{option}", default=default, type=type(default))
    args = parser.parse_args()
    file = Path(args.data, "train.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    source = resolve_model(args.model, "model")
    model = load_model(source, "float32", False, False)
    pairs = tokenise_all(Dataset.from_list(rows[: args.pairs]), source.tokenizer, MAX_LENGTH, args.model)
    languages = np.array([row["language"] for row in rows[: args.pairs]])
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    following = {}
    for language in set(languages.tolist()):
        own = [row for row in order if languages[row] == language]
        following |= dict(zip(own, own[1:] + own[:1], strict=True))
    nulls = [pair._replace(prompt=pairs[following[row]].prompt) for row, pair in enumerate(pairs)]
    raw, tokens = answer_log_probs(model, pairs, BATCH_SIZE, None, "raw")
    null, _ = answer_log_probs(model, nulls, BATCH_SIZE, None, "null")
    pmi = (raw - null) / np.sqrt(tokens.sum(axis=1, keepdims=True))
    for row, values in zip(rows, [*pmi.round(5).tolist(), *[[None, None]] * (len(rows) - len(pmi))], strict=True):
        row["pmi_chosen"], row["pmi_rejected"] = values
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8", newline="\n")

    margins = {"raw": raw, "null": null, "PMI": raw - null}
    margins = {name: (x[:, 0] - x[:, 1]) / np.sqrt(tokens.sum(axis=1)) for name, x in margins.items()}
    kinds = np.array([row["negative"] for row in rows[: args.pairs]])
    table = pd.DataFrame({name: values > 0 for name, values in margins.items()})
    for groups in (languages, kinds):  # shares of pairs that are ranked right, in %
        print((100 * table.groupby(groups).mean()).round(0).assign(pairs=table.groupby(groups).size()).to_string())
    flipped = np.random.default_rng(0).random(len(rows)) < 0.4
    print(
        {name: round(auroc(np.where(flipped[: len(x)], x, -x), flipped[: len(x)]), 3) for name, x in margins.items()}
    )


if __name__ == "__main__":
    main()

"""Add the margin of a reference model to preference pairs, as the score by which `flip_ambiguous` chooses labels.

    python scripts/research/add_reference_margins.py demo/study/model demo/study/data demo/other/data [--pairs 2400]

The column `reference_margin` of the training pairs is log pi_ref(chosen) - log pi_ref(rejected), in nats. The scores
`score_chosen` and `score_rejected`, of a judge that prefers the worse answer, are drawn from N(-1/2, 1) and N(1/2, 1).
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset

from trl_capo.data.tokenise import tokenise_all
from trl_capo.scoring.models import answer_log_probs, load_model, resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "data", "output"):
        parser.add_argument(name)
    parser.add_argument("--pairs", type=int, help="at most so many training pairs")
    args = parser.parse_args()
    splits, source = load_dataset(args.data), resolve_model(args.model, "model")
    train = splits["train"].select(range(min(len(splits["train"]), args.pairs or len(splits["train"]))))
    pairs = tokenise_all(train, source.tokenizer, None, source.name)
    log_probs, _ = answer_log_probs(load_model(source, "float32", False, False), pairs, 16, None, source.name)
    train = train.add_column("reference_margin", (log_probs[:, 0] - log_probs[:, 1]).round(4))
    scores = np.random.default_rng(0).normal((-0.5, 0.5), size=(len(train), 2)).round(4)
    splits["train"] = train.add_column("score_chosen", scores[:, 0]).add_column("score_rejected", scores[:, 1])
    for name, part in splits.items():
        part.to_json(Path(args.output, f"{name}.jsonl"), force_ascii=False)


if __name__ == "__main__":
    main()

"""Every way to train, against closed forms and against DPOTrainer.

Covered: full fine-tuning, LoRA (new, trained before, on 4-bit weights), prompt tuning, divergences, ld_alpha, several
losses at once, precomputed and synchronised references, mixture of experts, bfloat16, gradient checkpointing and
accumulation, streaming, named evaluation sets, resuming, all loss types of TRL at noise rate 0, images, model card.

The oracle never sees the trainer's batches: before every step it takes the log-probs of each completion with plain
cross-entropy, one unpadded sequence at a time, and puts them into the formulae of the method, in double precision.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import as_conversation, byte_tokenizer, logged, save_tiny_model, tiny_config
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOConfig, CAPOTrainer

LOSS_TYPES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
).split()
NEEDS_SMOOTHING = ("exo_pair", "robust")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
# Pairs in the order of the data set; steps so small that pairs of either sign of rho remain; a noise rate that matters.
COMMON = {
    "train_sampling_strategy": "sequential",
    "learning_rate": 2e-3,
    "beta": 0.3,
    "noise_rate": 0.3,
    "confidence_temperature": 0.7,
    "max_steps": 4,
    "gradient_checkpointing": False,
}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def weights(model) -> dict:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def token_log_probs(model, prompt: str, completion: str, **inputs) -> torch.Tensor:
    """Of each token of the completion and of the end token after it; prompt-learning adapters prepend outputs."""
    encode = byte_tokenizer().encode
    tokens, completion_ids = encode(prompt) + encode(completion) + [2], encode(completion) + [2]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False, **inputs).logits[0]
    logits = logits[-len(completion_ids) - 1 : -1].double()
    return -F.cross_entropy(logits, torch.tensor(completion_ids), reduction="none")


class Oracle(TrainerCallback):
    """Log-probs of every pair of the coming step, under the policy and under the reference."""

    def __init__(self, pairs, reference):
        self.rows, self.reference, self.steps = list(pairs), reference, []

    def on_step_begin(self, args, state, control, model, **kwargs):
        size = args.per_device_train_batch_size
        step = []
        for row in self.rows[state.global_step * size : (state.global_step + 1) * size]:
            step.append(
                [token_log_probs(m, row["prompt"], row[k]) for m in (model, self.reference) for k in COMPLETIONS]
            )
        self.steps.append(step)


COMPLETIONS = ("chosen", "rejected")


def score(log_ratio: float, args) -> float:
    """f'(pi / pi_ref) of TRL's divergences, up to a constant."""
    ratio = math.exp(log_ratio)
    if args.f_divergence_type == "forward_kl":
        return -1 / ratio
    if args.f_divergence_type == "js_divergence":
        return math.log(2 * ratio / (1 + ratio))
    if args.f_divergence_type == "alpha_divergence":
        power = args.f_alpha_divergence_coef - 1
        return (ratio**power - 1) / power
    return log_ratio


def expected_logs(step, rate: float, args) -> dict:
    """What one step must log, from the log-probs of its pairs and the noise rate in use."""
    losses, confidences, scales, rhos, chosen_tokens = [], [], [], [], []
    for chosen, rejected, ref_chosen, ref_rejected in step:
        shared, alpha = min(len(chosen), len(rejected)), 1.0 if args.ld_alpha is None else args.ld_alpha
        ratios = [
            (policy - ref)[:shared].sum().item() + alpha * (policy - ref)[shared:].sum().item()
            for policy, ref in ((chosen, ref_chosen), (rejected, ref_rejected))
        ]
        rho = args.beta * (score(ratios[0], args) - score(ratios[1], args))
        p = 1 / (1 + math.exp(-rho / args.confidence_temperature))
        confidences.append((1 - rate) * p / ((1 - rate) * p + rate * (1 - p)))
        scales.append(confidences[-1] / (1 - rate))
        losses.append(scales[-1] * math.log1p(math.exp(-rho)))
        rhos.append(rho)
        chosen_tokens.append(-chosen)
    terms = {"sigmoid": sum(losses) / len(losses), "sft": torch.cat(chosen_tokens).mean().item()}
    loss_weights = args.loss_weights or [1.0] * len(args.loss_type)
    return {
        "loss": sum(weight * terms[name] for name, weight in zip(args.loss_type, loss_weights, strict=True)),
        "capo/confidence": sum(confidences) / len(step),
        "capo/scale": sum(scales) / len(step),
        "capo/scale_min": min(scales),
        "capo/scale_max": max(scales),
        "capo/contradicted": sum(rho < 0 for rho in rhos) / len(step),
    }


def train_and_compare(model, reference, pairs, args, dataset=None, tolerance=1e-4, **options):
    """Trains; the logs of each step must be those of the oracle, the weights must move and the scales differ from 1."""
    oracle = Oracle(pairs, reference)
    trainer = CAPOTrainer(model, args=args, train_dataset=dataset or pairs, callbacks=[oracle], **options)
    before = weights(trainer.model)
    trainer.train()
    assert not same(before, weights(trainer.model))
    rates = logged(trainer, "capo/noise_rate")
    assert len(rates) == len(oracle.steps) == args.max_steps
    for entry, step, rate in zip(trainer.state.log_history, oracle.steps, rates, strict=False):
        expected = expected_logs(step, rate, args)
        expected["loss"] += trainer.router_aux_loss_coef * entry.get("aux_loss", 0.0)
        assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert max(abs(scale - 1) for scale in logged(trainer, "capo/scale_min")) > 0.02
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise_rate": 0.01},
        {"noise_rate": 0.5},
        {"noise_rate": "auto"},
        {"ld_alpha": 0.3},
        {"ld_alpha": 0.0},
        {"f_divergence_type": "forward_kl", "beta": 0.05},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.2]},
        {"gradient_checkpointing": True},
        {"precompute_ref_log_probs": True},
    ],
    ids=str,
)
def test_full_fine_tuning_with_explicit_reference(make_args, model_dir, other_model_dir, pairs, options):
    ref_model = load(other_model_dir)
    before = weights(ref_model)
    train_and_compare(
        model_dir, load(other_model_dir), pairs, make_args(**{**COMMON, **options}), ref_model=ref_model
    )
    assert same(before, weights(ref_model))


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_without_explicit_reference_it_is_the_initial_policy(make_args, model_dir, pairs, options):
    args = make_args(**{**COMMON, **options, "max_steps": 6})
    trainer = train_and_compare(model_dir, load(model_dir), pairs, args)
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_streaming_data(make_args, model_dir, other_model_dir, pairs):
    args = make_args(**COMMON)
    stream = pairs.to_iterable_dataset()
    train_and_compare(
        model_dir, load(other_model_dir), pairs, args, dataset=stream, ref_model=load(other_model_dir)
    )

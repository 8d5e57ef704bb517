"""An oracle of the loss and of what a training step logs, for runs that are computed in any way.

It never sees the trainer's batches. Before every step it takes the log-probs of each completion with plain
cross-entropy, one unpadded sequence at a time, and puts them into the formulae of the method, in double precision.
"""

import torch
import torch.nn.functional as F
from conftest import byte_tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback

END = 2
"""The token after each completion."""
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
# Pairs in the order of the data set; steps so small that rhos of either sign remain; a noise rate that matters.
PLAIN = {"train_sampling_strategy": "sequential", "learning_rate": 2e-3, "beta": 0.3, "gradient_checkpointing": False}
COMMON = PLAIN | {"noise_rate": 0.3, "confidence_temperature": 0.7, "max_steps": 4}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def token_log_probs(model, prompt: list[int], completion: list[int], **inputs) -> torch.Tensor:
    """Of each token of the completion that something predicts: without a prompt, of all but the first."""
    ids = torch.tensor([prompt + completion], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, :-1]
    logits = logits[-len(completion) :].double()  # prompt-learning adapters put outputs in front
    return -F.cross_entropy(logits, ids[0, ids.shape[1] - len(logits) :], reduction="none")


def pair_log_probs(row: dict, models: list) -> list[torch.Tensor]:
    """Token log-probs of the chosen and the rejected completion under each model."""
    prompt, *completions = (byte_tokenizer().encode(row[key]) for key in ("prompt", "chosen", "rejected"))
    return [token_log_probs(model, prompt, ids + [END]) for model in models for ids in completions]


class Oracle(TrainerCallback):
    """Keeps the log-probs of every pair of the coming step, under the policy and under the reference."""

    def __init__(self, pairs, reference) -> None:
        self.rows, self.reference, self.steps = list(pairs), reference, []

    def on_step_begin(self, args, state, control, model, **kwargs) -> None:
        model.train()  # as the trainer does next; on the CPU, bitsandbytes repacks 4-bit weights that it sees in eval
        size = args.per_device_train_batch_size
        rows = self.rows[state.global_step * size : (state.global_step + 1) * size]
        self.steps.append([pair_log_probs(row, [model, self.reference]) for row in rows])


def score(log_ratio, args):
    """f'(pi / pi_ref) of TRL's divergences, up to a constant."""
    ratio, power = log_ratio.exp(), args.f_alpha_divergence_coef - 1
    return {
        "reverse_kl": log_ratio,
        "forward_kl": -1 / ratio,
        "js_divergence": (2 * ratio / (1 + ratio)).log(),
        "alpha_divergence": (ratio**power - 1) / power,
    }[args.f_divergence_type]


def relative_rewards(step, args) -> torch.Tensor:
    """(B,) rho of the pairs of a step, from their token log-probs."""
    rhos, tail = [], 1.0 if args.ld_alpha is None else args.ld_alpha
    for chosen, rejected, ref_chosen, ref_rejected in step:
        shared, ratios = min(len(chosen), len(rejected)), (chosen - ref_chosen, rejected - ref_rejected)
        good, bad = (score(ratio[:shared].sum() + tail * ratio[shared:].sum(), args) for ratio in ratios)
        rhos.append(args.beta * (good - bad))
    return torch.stack(rhos)


def expected_logs(step, rate, args, label_weight=1.0, weight=1.0) -> dict[str, float]:
    """What a step must log, from the log-probs of its pairs, the noise rates in use, label weights and weights."""
    rho = relative_rewards(step, args)
    p = torch.sigmoid(rho / args.confidence_temperature)
    confidence = (1 - rate) * p / ((1 - rate) * p + rate * (1 - p))
    scale = label_weight * confidence / (1 - rate)
    losses = {"sigmoid": (weight * scale * F.softplus(-rho)).mean()}
    losses["sft"] = -torch.cat([chosen for chosen, *_ in step]).mean()
    parts = zip(args.loss_type, args.loss_weights or [1.0], strict=True)
    expected = {"loss": sum(loss_weight * losses[name] for name, loss_weight in parts)}
    expected |= {"capo/confidence": confidence.mean(), "capo/contradicted": (rho < 0).double().mean()}
    expected |= {"capo/scale": scale.mean(), "capo/scale_min": scale.min(), "capo/scale_max": scale.max()}
    return {name: value.item() for name, value in expected.items()}


def completion_log_prob(model, prompt: str, completion: str) -> torch.Tensor:
    """The log-prob of a completion with its gradient, by plain log-softmax."""
    prompt_ids = byte_tokenizer().encode(prompt)
    ids = torch.tensor([prompt_ids + byte_tokenizer().encode(completion) + [END]])
    log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return log_probs.gather(1, ids[0, 1:, None])[len(prompt_ids) - 1 :].sum()


def gradients(trainer, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradient of every parameter."""
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

"""Every way to train, against closed forms and against DPOTrainer.

Covered: full fine-tuning, LoRA (new, trained before, on 4-bit weights), prompt tuning, divergences, ld_alpha, several
losses at once, precomputed and synchronised references, mixture of experts, bfloat16, gradient checkpointing,
streaming, images.

The oracle never sees the trainer's batches: before every step it takes the log-probs of each completion with plain
cross-entropy, one unpadded sequence at a time, and puts them into the formulae of the method, in double precision.
"""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import byte_tokenizer, logged, save_tiny_model, tiny_config, tiny_llava
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from PIL import Image
from rates_oracle import KeepEstimates, own_rates
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlavaForConditionalGeneration, TrainerCallback
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOTrainer

END = 2  # the token after each completion
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
# Pairs in the order of the data set; steps so small that rhos of either sign remain; a noise rate that matters.
PLAIN = {"train_sampling_strategy": "sequential", "learning_rate": 2e-3, "beta": 0.3, "gradient_checkpointing": False}
AUTO = {"noise_rate": "auto", "group_column": None}  # one rate for all pairs, which the logs name
COMMON = PLAIN | {"noise_rate": 0.3, "confidence_temperature": 0.7, "max_steps": 4}
OPTIONS = [
    {},
    {"noise_rate": 0.01},
    {"noise_rate": 0.5},
    AUTO,
    {"ld_alpha": 0.3},
    {"ld_alpha": 0.0},
    {"f_divergence_type": "forward_kl", "beta": 0.05},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.2]},
    {"gradient_checkpointing": True},
    {"precompute_ref_log_probs": True},
]


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def weights(model) -> dict:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def token_log_probs(model, prompt: list[int], completion: list[int], **inputs) -> torch.Tensor:
    """Of each token of the completion. Prompt-learning adapters put outputs in front: count from the end."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False, **inputs).logits[0]
    logits = logits[-len(completion) - 1 : -1].double()
    return -F.cross_entropy(logits, torch.tensor(completion), reduction="none")


class Oracle(TrainerCallback):
    """Log-probs of every pair of the coming step, under the policy and under the reference."""

    def __init__(self, pairs, reference):
        self.rows, self.reference, self.steps = list(pairs), reference, []

    def on_step_begin(self, args, state, control, model, **kwargs):
        model.train()  # as the trainer does next; on the CPU, bitsandbytes repacks 4-bit weights that it sees in eval
        size, step = args.per_device_train_batch_size, []
        for row in self.rows[state.global_step * size : (state.global_step + 1) * size]:
            prompt, *completions = (byte_tokenizer().encode(row[k]) for k in ("prompt", "chosen", "rejected"))
            models = [model, self.reference]
            step.append([token_log_probs(m, prompt, ids + [END]) for m in models for ids in completions])
        self.steps.append(step)


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
    rhos, tail = [], 1.0 if args.ld_alpha is None else args.ld_alpha
    for chosen, rejected, ref_chosen, ref_rejected in step:
        shared, ratios = min(len(chosen), len(rejected)), (chosen - ref_chosen, rejected - ref_rejected)
        good, bad = (score(ratio[:shared].sum() + tail * ratio[shared:].sum(), args) for ratio in ratios)
        rhos.append(args.beta * (good - bad))
    return torch.stack(rhos)


def expected_logs(step, rate, args, weight=1.0) -> dict:
    """What one step must log, from the log-probs of its pairs, the noise rates in use and the weights of the pairs."""
    rho = relative_rewards(step, args)
    p = torch.sigmoid(rho / args.confidence_temperature)
    confidence = (1 - rate) * p / ((1 - rate) * p + rate * (1 - p))
    scale = weight * confidence / (1 - rate)
    terms = {"sigmoid": (scale * F.softplus(-rho)).mean(), "sft": -torch.cat([chosen for chosen, *_ in step]).mean()}
    parts = zip(args.loss_type, args.loss_weights or [1.0], strict=True)
    expected = {"loss": sum(weight * terms[name] for name, weight in parts), "confidence": confidence.mean()}
    expected |= {"scale": scale.mean(), "scale_min": scale.min(), "scale_max": scale.max()}
    expected["contradicted"] = (rho < 0).double().mean()
    return {name if name == "loss" else f"capo/{name}": value.item() for name, value in expected.items()}


def train_and_compare(model, reference, pairs, args, dataset=None, tolerance=1e-4, **options):
    """Trains; each step must log what the oracle says, the weights must move and the scales differ from 1."""
    oracle = Oracle(pairs, reference)
    trainer = CAPOTrainer(model, args=args, train_dataset=dataset or pairs, callbacks=[oracle], **options)
    kept, auto = KeepEstimates(trainer), args.noise_rate == "auto"
    if auto:
        trainer.add_callback(kept)
    before = weights(trainer.model)
    trainer.train()
    assert not same(before, weights(trainer.model))
    rates = logged(trainer, "capo/noise_rate")
    assert len(rates) == len(oracle.steps) == args.max_steps
    for place, (entry, step, rate) in enumerate(zip(trainer.state.log_history, oracle.steps, rates, strict=False)):
        weight = 1.0
        if auto:  # in the first epoch, and without groups
            rate, weight = own_rates(step, [None] * len(step), kept.rates[place], kept.of_slope[place])
        expected = expected_logs(step, rate, args, weight)
        if tolerance > 1e-3:  # rounding may turn the sign of a rho near 0
            del expected["capo/contradicted"]
        expected["loss"] += trainer.router_aux_loss_coef * entry.get("aux_loss", 0.0)
        assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert max(abs(scale - 1) for scale in logged(trainer, "capo/scale_min")) > 0.02
    return trainer


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_full_fine_tuning_with_explicit_reference(make_args, model_dir, other_model_dir, pairs, options):
    reference, ref_model, args = load(other_model_dir), load(other_model_dir), make_args(**COMMON | options)
    train_and_compare(model_dir, reference, pairs, args, ref_model=ref_model)
    assert same(weights(reference), weights(ref_model))


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_without_explicit_reference_it_is_the_initial_policy(make_args, model_dir, pairs, options):
    trainer = train_and_compare(model_dir, load(model_dir), pairs, make_args(**COMMON | options | {"max_steps": 6}))
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_streaming_data(make_args, model_dir, other_model_dir, pairs):
    stream, args = pairs.to_iterable_dataset(), make_args(**COMMON)
    train_and_compare(model_dir, load(other_model_dir), pairs, args, stream, ref_model=load(other_model_dir))


@pytest.mark.parametrize("options", [{"bf16": True}, {"model_init_kwargs": {"dtype": "bfloat16"}}], ids=str)
def test_bfloat16(make_args, model_dir, other_model_dir, pairs, options):
    """bfloat16 keeps 8 bits: sums of some 60 log-probs are right to about 0.1, and with beta 0.05 so is the loss."""
    dtype = torch.float32 if "bf16" in options else torch.bfloat16
    args, ref_model = make_args(**COMMON | options | {"beta": 0.05}), load(other_model_dir, dtype=dtype)
    trainer = train_and_compare(model_dir, ref_model, pairs, args, tolerance=0.05, ref_model=ref_model)
    assert trainer.model.dtype == dtype


@pytest.mark.parametrize(
    "options", [{}, {"noise_rate": "auto", "group_column": None, "gradient_checkpointing": True}], ids=str
)
def test_new_lora_adapter_has_the_base_model_as_reference(make_args, model_dir, pairs, options):
    args = make_args(**COMMON | {"learning_rate": 1e-2} | options)
    trainer = train_and_compare(model_dir, load(model_dir), pairs, args, peft_config=LoraConfig(**LORA))
    assert same(weights(load(model_dir)), weights(trainer.model.unload()))


def test_trained_lora_adapter_is_its_own_reference(make_args, model_dir, pairs, tmp_path):
    """The reference of the oracle is the adapter as it was saved, not the base model."""
    get_peft_model(load(model_dir), LoraConfig(**LORA, init_lora_weights=False)).save_pretrained(tmp_path)
    model, reference = (PeftModel.from_pretrained(load(model_dir), tmp_path, is_trainable=t) for t in (True, False))
    train_and_compare(model, reference, pairs, make_args(**COMMON))
    saved, trained = weights(reference), weights(model)
    for name in [name for name in saved if ".default." in name]:
        assert torch.equal(saved[name], trained[name.replace(".default.", ".ref.")])
        assert not torch.equal(saved[name], trained[name])


def test_lora_on_4_bit_weights(make_args, pairs, tmp_path):
    folder = save_tiny_model(tmp_path / "model", seed=0, config=tiny_config(hidden_size=64))
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    reference = load(folder, quantization_config=quantized).train()
    options = {"peft_config": LoraConfig(**LORA), "quantization_config": quantized}
    args = make_args(**COMMON | {"learning_rate": 1e-2})
    assert train_and_compare(folder, reference, pairs, args, **options).model.is_loaded_in_4bit


def test_prompt_tuning(make_args, model_dir, pairs):
    options = {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)}
    train_and_compare(model_dir, load(model_dir), pairs, make_args(**COMMON | {"learning_rate": 0.05}), **options)


def test_mixture_of_experts_leaves_the_auxiliary_loss_unscaled(make_args, pairs, tmp_path):
    """At step 1 the auxiliary loss is DPOTrainer's; the oracle adds it with its own coefficient."""
    sizes = tiny_config().to_diff_dict() | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(**sizes, output_router_logits=True, router_aux_loss_coef=0.5)
    policy, other = (save_tiny_model(tmp_path / str(i), i, config, transformers.MixtralForCausalLM) for i in (0, 1))
    trainer = train_and_compare(policy, load(other), pairs, make_args(**COMMON), ref_model=load(other))
    dpo = DPOTrainer(policy, load(other), make_args(DPOConfig, **PLAIN), train_dataset=pairs)
    dpo.train()
    assert logged(trainer, "aux_loss")[0] == logged(dpo, "aux_loss")[0] > 0.5


@pytest.mark.parametrize("steps", [2, 4])
def test_synchronised_reference_follows_the_policy(make_args, model_dir, other_model_dir, pairs, steps):
    """Every second step it becomes 0.25 policy + 0.75 reference; the oracle asks the reference as it is then."""
    ref_model, sync = load(other_model_dir), {"sync_ref_model": True, "ref_model_sync_steps": 2}
    args = make_args(**COMMON | sync | {"ref_model_mixup_alpha": 0.25, "max_steps": steps})
    trainer = train_and_compare(model_dir, ref_model, pairs, args, ref_model=ref_model)
    policy, before = weights(trainer.model), weights(load(other_model_dir))
    if steps == 2:
        mixed = {name: 0.25 * policy[name] + 0.75 * before[name] for name in before}
        torch.testing.assert_close(weights(ref_model), mixed)


def test_vision_language_model(make_args):
    """A tiny LLaVA with a Pillow image processor: the oracle gives both models the image of each pair by itself."""
    processor, config = tiny_llava()
    models, rows, step = [], [], []
    for seed in (0, 1, 0, 1):
        torch.manual_seed(seed)
        models.append(LlavaForConditionalGeneration(config))
    for color in ("red", "green", "blue", "white"):
        image, prompt = Image.new("RGB", (28, 28), color), "<image>Colour?"
        rows.append({"images": [image], "prompt": prompt, "chosen": color, "rejected": "Well"})
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids, pixels = inputs["input_ids"][0].tolist(), inputs["pixel_values"]
        texts = [processor.tokenizer.encode(text) for text in (color, "Well")]
        step.append([token_log_probs(m, ids, text, pixel_values=pixels) for m in models[2:] for text in texts])
    args, data = make_args(**COMMON | {"max_steps": 1}), Dataset.from_list(rows)
    trainer = CAPOTrainer(models[0], models[1], args=args, train_dataset=data, processing_class=processor)
    trainer.train()
    expected = expected_logs(step, 0.3, args)
    assert {key: logged(trainer, key)[0] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert not same(weights(models[0]), weights(models[2]))
    assert same(weights(models[1]), weights(models[3]))

"""Everything that CAPOTrainer assumes of TRL, in one file: a new TRL release is tried by running it.

The oracle is DPOTrainer itself where CAPO must equal it, and plain log-softmax over single, unpadded sequences where
the two differ.
"""

import inspect

import pytest
import torch
from conftest import logged
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from trl_capo import CAPOTrainer
from trl_capo.pairs import PAIR
from trl_capo.seam import FirstOutput

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def test_signatures_that_are_overridden_are_those_of_dpo_trainer():
    saving = ("_save_checkpoint", "_save_rng_state", "_load_rng_state")
    for name in ("__init__", "compute_loss", "log", "train", *saving):
        theirs, ours = (inspect.signature(getattr(cls, name)) for cls in (DPOTrainer, CAPOTrainer))
        assert [(p.name, p.default) for p in theirs.parameters.values()] == [
            (p.name, p.default) for p in ours.parameters.values()
        ], name
    loop = inspect.signature(DPOTrainer.evaluation_loop).parameters
    assert list(loop) == list(inspect.signature(CAPOTrainer.evaluation_loop).parameters)


def test_public_names_that_are_called_exist():
    parameters = list(inspect.signature(DPOTrainer.compute_ref_log_probs).parameters)
    assert parameters == ["self", "model", "inputs"]


def test_batch_is_chosen_then_rejected_with_the_keys_relied_on(model_dir, pairs, make_args):
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", PAIR}
    assert batch["input_ids"].shape == batch["completion_mask"].shape == batch["attention_mask"].shape
    tokenizer = trainer.processing_class
    texts = [
        tokenizer.decode(ids[mask == 1])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert len(texts) == 8
    assert all(" ja" in text for text in texts[:4])
    assert all(" nein" in text for text in texts[4:])


def gradients(trainer, batch):
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precompute_ref_log_probs": True},
        {"ld_alpha": 0.3},
        {"f_divergence_type": "js_divergence"},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
        {"loss_type": ["ipo"]},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
        {"use_weighting": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_noise_rate_zero_gives_dpos_loss_and_gradients_to_the_bit(model_dir, pairs, make_args, peft_config, options):
    dpo = DPOTrainer(model_dir, args=make_args(DPOConfig, **options), train_dataset=pairs, peft_config=peft_config)
    capo = CAPOTrainer(
        model_dir, args=make_args(noise_rate=0, **options), train_dataset=pairs, peft_config=peft_config
    )
    batch = next(iter(dpo.get_train_dataloader()))
    if peft_config is None:  # a policy that differs from its reference, so that rho is not 0
        for trainer in (dpo, capo):
            torch.manual_seed(3)
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
    (dpo_loss, dpo_gradients), (capo_loss, capo_gradients) = gradients(dpo, batch), gradients(capo, batch)
    assert torch.equal(dpo_loss, capo_loss)
    assert dpo_gradients.keys() == capo_gradients.keys()
    assert all(torch.equal(dpo_gradients[name], capo_gradients[name]) for name in dpo_gradients)


def test_noise_rate_zero_gives_dpos_ten_step_trajectory(model_dir, pairs, make_args):
    options = {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 5}
    trainers = []
    for cls, args in (
        (DPOTrainer, make_args(DPOConfig, **options)),
        (CAPOTrainer, make_args(noise_rate=0, **options)),
    ):
        trainer = cls(model_dir, args=args, train_dataset=pairs, eval_dataset=pairs.select(range(8)))
        trainer.train()
        trainers.append(trainer)
    dpo, capo = trainers
    for key in ("loss", "grad_norm", "eval_loss", "rewards/margins", "eval_rewards/accuracies", "logps/chosen"):
        assert logged(dpo, key) == logged(capo, key), key
    assert len(logged(capo, "loss")) == 10
    assert all(torch.equal(a, b) for a, b in zip(dpo.model.parameters(), capo.model.parameters(), strict=True))


def completion_log_prob(model, tokenizer, prompt: str, completion: str) -> torch.Tensor:
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([prompt_ids + tokenizer(completion + tokenizer.eos_token)["input_ids"]])
    log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return log_probs.gather(1, ids[0, 1:, None])[len(prompt_ids) - 1 :].sum()


def test_scaled_loss_and_gradients_equal_an_oracle_that_takes_the_pairs_one_by_one(
    model_dir, other_model_dir, pairs, make_args, monkeypatch
):
    """With random scales in place of the confidence, each pair alone, unpadded, through plain log-softmax."""
    reference = AutoModelForCausalLM.from_pretrained(other_model_dir)
    trainer = CAPOTrainer(
        model_dir,
        ref_model=AutoModelForCausalLM.from_pretrained(other_model_dir),
        args=make_args(train_sampling_strategy="sequential", beta=0.3),
        train_dataset=pairs,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    scales = torch.tensor([0.2, 1.7, 0.0, 1.0])
    monkeypatch.setattr("trl_capo.trainer.confidence_scale", lambda rho, **_: scales)
    loss, found = gradients(trainer, batch)

    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    expected = torch.zeros(())
    for scale, pair in zip(scales, pairs.select(range(4)), strict=True):
        chosen, rejected = (
            completion_log_prob(policy, tokenizer, pair["prompt"], pair[side])
            - completion_log_prob(reference, tokenizer, pair["prompt"], pair[side]).detach()
            for side in ("chosen", "rejected")
        )
        expected = expected + scale * -torch.log(torch.sigmoid(0.3 * (chosen - rejected))) / 4
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "explicit_reference", "peft_config", "policy_forwards", "reference_forwards"),
    [
        ({}, True, None, 1, 1),
        ({}, False, LORA, 2, 0),  # with adapters the policy, its adapter disabled, is the reference
        ({"precompute_ref_log_probs": True}, False, None, 1, 0),
        ({"noise_rate": 0}, True, None, 1, 1),
    ],
    ids=["reference", "lora", "precomputed", "noise rate 0"],
)
def test_a_step_takes_one_policy_forward_and_one_reference_forward(
    model_dir,
    other_model_dir,
    pairs,
    make_args,
    options,
    explicit_reference,
    peft_config,
    policy_forwards,
    reference_forwards,
):
    reference = AutoModelForCausalLM.from_pretrained(other_model_dir) if explicit_reference else None
    trainer = CAPOTrainer(
        model_dir, ref_model=reference, args=make_args(**options), train_dataset=pairs, peft_config=peft_config
    )
    batch = next(iter(trainer.get_train_dataloader()))
    calls = {"policy": 0, "reference": 0}

    def count(name):
        def hook(module, arguments, output):
            calls[name] += 1

        return hook

    policy = trainer.model.get_base_model() if peft_config else trainer.model
    policy.base_model.register_forward_hook(count("policy"))
    if reference is not None:
        trainer.ref_model.base_model.register_forward_hook(count("reference"))
    gradients(trainer, batch)
    assert calls == {"policy": policy_forwards, "reference": reference_forwards}


def test_only_the_first_forward_is_recorded():
    outputs = iter(["first", "second"])
    model = FirstOutput(lambda: next(outputs))
    assert [model(), model(), model.value] == ["first", "second", "first"]


def test_a_trl_that_computes_another_loss_is_refused_with_its_version(model_dir, pairs, make_args, monkeypatch):
    monkeypatch.setattr(
        DPOTrainer,
        "compute_loss",
        lambda self, model, inputs, *_: model(
            **{k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")},
            labels=inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100),
            fused_lm_head=True,
        ).log_probs.sum(),
    )
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(RuntimeError, match=r"TRL \d+\.\d+.* gives the first batch the loss"):
        trainer.compute_loss(trainer.model, dict(batch))


def test_a_trl_that_no_longer_returns_log_probs_is_refused_with_its_version(model_dir, pairs, make_args, monkeypatch):
    monkeypatch.setattr(DPOTrainer, "compute_loss", lambda self, *_: torch.zeros(()))
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(RuntimeError, match=r"TRL \d+\.\d+.* no longer gets `log_probs`"):
        trainer.compute_loss(trainer.model, dict(batch))


def test_outputs_are_returned_when_asked_for(model_dir, pairs, make_args):
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert loss.shape == ()
    assert outputs.logits.shape[:2] == batch["input_ids"].shape


def test_the_command_relies_on_trls_launcher():
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    resolved = resolve_accelerate_config_argument(["--accelerate_config", "fsdp2", "--num_processes", "2"])
    assert resolved[0] == "--config_file"
    assert resolved[1].endswith("fsdp2.yaml")
    assert resolved[2:] == ["--num_processes", "2"]

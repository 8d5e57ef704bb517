"""Everything that the package assumes about TRL and Transformers: a new release is tried by running this file.

NAMES and TRAINER list each name that the package imports or uses, private ones included, and are compared with the
source. The oracle of the numbers is DPOTrainer itself where CAPO must equal it, and plain log-softmax over single,
unpadded sequences where the two differ.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers
import trl
from conftest import logged
from oracles import LORA, PLAIN, completion_log_prob, gradients, load, same, weights
from peft import LoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

import trl_capo
from trl_capo import CAPOConfig, CAPOTrainer
from trl_capo.core.pairs import GROUP, PAIR

VERSIONS = f"This is TRL {trl.__version__} with Transformers {transformers.__version__}"
SOURCES = {path: path.read_text(encoding="utf-8") for path in Path(trl_capo.__file__).parent.rglob("*.py")}
NAMES = {
    "transformers": "AutoConfig AutoModelForCausalLM AutoProcessor AutoTokenizer BitsAndBytesConfig "
    "PreTrainedTokenizerBase TrainerCallback TrainerState",
    "transformers.hf_argparser": "HfArg",
    "transformers.trainer": "TRAINER_STATE_NAME",
    "transformers.trainer_callback": "ExportableState",
    "transformers.utils": "find_adapter_config_file",
    "trl": "DPOConfig DPOTrainer DatasetMixtureConfig ModelConfig ScriptArguments TrlParser extract_prompt "
    "get_dataset get_peft_config get_quantization_config is_conversational",
    "trl.cli.accelerate_config": "resolve_accelerate_config_argument",
    "trl.trainer": "utils",
    "trl.trainer.utils": "_use_triton add_fused_lm_head",
}
TRAINER = """
    _metrics _set_signature_columns_if_needed _signature_columns accelerator add_callback args aux_loss_enabled beta
    callback_handler compute_loss compute_ref_log_probs control create_model_card data_collator eval_dataset
    evaluate evaluation_loop f_alpha_divergence_coef f_divergence_type is_world_process_zero ld_alpha log log_history
    loss_types model
    precompute_ref_logps push_to_hub ref_model save_model state train train_dataset use_weighting
"""
OVERRIDDEN = ["_set_signature_columns_if_needed", "compute_loss", "compute_ref_log_probs", "evaluate"]
OVERRIDDEN += ["evaluation_loop", "log"]


def imported_names() -> set[tuple[str, str]]:
    """Every name that the package imports from TRL and Transformers, with its module."""
    found = set()
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("trl", "transformers"):
                found |= {(node.module, alias.name) for alias in node.names}
    return found


def test_attributes_of_models_that_packing_relies_on_exist():
    for name in ("_supports_attention_backend", "_is_stateful", "base_model"):
        assert hasattr(transformers.PreTrainedModel, name), f"{VERSIONS}, whose models have no {name}."
    assert transformers.LlamaConfig(attn_implementation="eager")._attn_implementation == "eager", VERSIONS
    mistral = importlib.import_module("transformers.models.mistral.modeling_mistral")
    assert hasattr(mistral, "create_sliding_window_causal_mask"), VERSIONS


@pytest.mark.parametrize("module", NAMES)
def test_names_that_are_imported_exist(module):
    for name in NAMES[module].split():
        assert hasattr(importlib.import_module(module), name), f"{VERSIONS}, whose {module} has no {name}."


def test_the_list_of_names_is_complete():
    listed = {(module, name) for module, names in NAMES.items() for name in names.split()}
    not_by_name = {("trl.trainer.utils", "_use_triton")}
    assert imported_names() == listed - not_by_name


def test_attributes_of_the_trainer_exist_and_the_list_is_complete(model_dir, pairs, make_args):
    trainer = DPOTrainer(model_dir, args=make_args(DPOConfig), train_dataset=pairs)
    trainer._set_signature_columns_if_needed()
    for name in TRAINER.split():
        there = hasattr(trainer, name) or hasattr(trainer.state, name)
        assert there, f"{VERSIONS}, whose DPOTrainer has no {name}."
    assert set(trainer._metrics) >= {"train", "eval"}, f"{VERSIONS}, whose DPOTrainer keeps its metrics differently."
    used = set()
    for path, source in SOURCES.items():
        prefix = r"(?:self|super\(\)|trainer)" if path.parts[-2:] == ("core", "trainer.py") else "trainer"
        used |= set(re.findall(rf"\b{prefix}\.(\w+)", source)) - {"trainer_utils", "utils", "output"}
    own = {"noise_rate_estimator", "parsed", "__init__", "py"}
    assert {name for name in used - own if "_capo" not in name} <= set(TRAINER.split())


def test_the_trainer_overrides_six_methods_with_dpo_trainers_parameters():
    own = [name for name, value in vars(CAPOTrainer).items() if inspect.isfunction(value) and "_capo" not in name]
    assert sorted(set(own) - {"__init__"}) == OVERRIDDEN
    for name in OVERRIDDEN:
        theirs, ours = (inspect.signature(getattr(cls, name)).parameters for cls in (DPOTrainer, CAPOTrainer))
        assert list(theirs) == list(ours), f"{VERSIONS}, whose DPOTrainer.{name} has other parameters."
    parameters = inspect.signature(CAPOTrainer).parameters.values()
    shared = [parameter.name for parameter in parameters if "VAR" not in parameter.kind.name]
    theirs = list(inspect.signature(DPOTrainer).parameters)[: len(shared)]
    assert theirs == shared, f"{VERSIONS}, whose DPOTrainer takes other arguments."


def test_events_and_fields_of_callbacks_exist():
    events = {name for source in SOURCES.values() for name in re.findall(r"def (on_\w+)\(self", source)} - {"on_pairs"}
    assert len(events) >= 6
    assert all(hasattr(TrainerCallback, event) for event in events), f"{VERSIONS}, whose callbacks lack an event."
    sources = [source for path, source in SOURCES.items() if path.parent.name in ("core", "callbacks")]
    for name, cls in (("state", TrainerState), ("control", TrainerControl)):
        used = {field for source in sources for field in re.findall(rf"\b{name}\.([a-z_]+)\b", source)}
        missing = [field for field in used if not hasattr(cls(), field)]
        assert len(used) >= 3
        assert not missing, f"{VERSIONS}, whose {cls.__name__} has no {missing}."


def test_batches_hold_chosen_then_rejected_under_the_keys_relied_on(model_dir, pairs, make_args):
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", PAIR, GROUP}, VERSIONS
    assert batch["input_ids"].shape == batch["completion_mask"].shape == batch["attention_mask"].shape
    rows = zip(batch["input_ids"], batch["completion_mask"], strict=True)
    texts = [trainer.processing_class.decode(ids[mask == 1]) for ids, mask in rows]
    assert [" ja" in text for text in texts] == [True] * 4 + [False] * 4
    assert [" nein" in text for text in texts] == [False] * 4 + [True] * 4
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert loss.shape == ()
    assert outputs.logits.shape[:2] == batch["input_ids"].shape


LOSSES = "hinge ipo nca_pair bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm"
SMOOTHED = [{"loss_type": [name], "label_smoothing": 0.1} for name in ("exo_pair", "robust")]
SAME_AS_DPO = [
    {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 5},
    {"precompute_ref_log_probs": True},
    {"ld_alpha": 0.3},
    {"f_divergence_type": "js_divergence"},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
    {"use_weighting": True},
    {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
]


@pytest.mark.parametrize(
    ("options", "lora"),
    [(options, lora) for lora in (False, True) for options in SAME_AS_DPO]
    + [(options, False) for options in (*SMOOTHED, *({"loss_type": [name]} for name in LOSSES.split()))],
    ids=str,
)
def test_noise_rate_zero_is_dpo_to_the_bit(make_args, model_dir, other_model_dir, pairs, options, lora):
    """Compare logs and weights of three steps; from the second on, a LoRA policy differs from its reference."""
    data, runs = {"train_dataset": pairs, "eval_dataset": pairs.select(range(8))}, []
    for trainer_class, config, own in ((DPOTrainer, DPOConfig, {}), (CAPOTrainer, CAPOConfig, {"noise_rate": 0.0})):
        args, peft_config = make_args(config, **PLAIN | options | own), LoraConfig(**LORA) if lora else None
        models = (model_dir, None if lora else load(other_model_dir))
        torch.manual_seed(0)  # of the adapter's first weights
        runs.append(trainer_class(*models, args=args, **data, peft_config=peft_config))
        runs[-1].train()
    assert same(weights(runs[0].model), weights(runs[1].model))
    for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy", "eval_loss", "eval_entropy"):
        assert logged(runs[0], key) == logged(runs[1], key), key


def test_scaled_loss_and_gradients_equal_an_oracle_that_takes_the_pairs_one_by_one(
    model_dir, other_model_dir, pairs, make_args, monkeypatch
):
    """With random scales in place of the confidence, each pair alone, unpadded, through plain log-softmax."""
    args, models = make_args(train_sampling_strategy="sequential", beta=0.3), (model_dir, load(other_model_dir))
    trainer = CAPOTrainer(*models, args=args, train_dataset=pairs)
    scales = torch.tensor([0.2, 1.7, 0.0, 1.0])
    monkeypatch.setattr("trl_capo.core.losses.confidence_scale", lambda rho, **_: scales)
    loss, found = gradients(trainer, next(iter(trainer.get_train_dataloader())))
    policy, reference, expected = load(model_dir), load(other_model_dir), torch.zeros(())
    for scale, pair in zip(scales, pairs.select(range(4)), strict=True):
        chosen, rejected = (
            completion_log_prob(policy, pair["prompt"], pair[side])
            - completion_log_prob(reference, pair["prompt"], pair[side]).detach()
            for side in ("chosen", "rejected")
        )
        expected = expected + scale * -torch.log(torch.sigmoid(0.3 * (chosen - rejected))) / 4
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


FORWARDS = {
    "reference": ({}, True, None, [1, 1]),
    "lora": ({}, False, LoraConfig(**LORA), [2, 0]),  # the policy, with its adapter disabled, is the reference
    "precomputed": ({"precompute_ref_log_probs": True}, False, None, [1, 0]),
    "noise rate 0": ({"noise_rate": 0}, True, None, [1, 1]),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_a_step_takes_one_policy_and_one_reference_forward(model_dir, other_model_dir, pairs, make_args, case):
    options, reference, peft_config, forwards = FORWARDS[case]
    models = (model_dir, load(other_model_dir) if reference else None)
    trainer = CAPOTrainer(*models, make_args(**options), train_dataset=pairs, peft_config=peft_config)
    batch, calls = next(iter(trainer.get_train_dataloader())), [0, 0]
    policy = trainer.model.get_base_model() if peft_config else trainer.model
    for place, model in enumerate([policy, trainer.ref_model][: 1 + reference]):

        def count(*_, place=place):
            calls[place] += 1

        model.base_model.register_forward_hook(count)
    gradients(trainer, batch)
    assert calls == forwards


def test_a_trl_that_computes_another_loss_is_refused_with_its_version(model_dir, pairs, make_args, monkeypatch):
    compute = DPOTrainer.compute_loss
    monkeypatch.setattr(DPOTrainer, "compute_loss", lambda self, *args: 2 * compute(self, *args))
    trainer = CAPOTrainer(model_dir, args=make_args(), train_dataset=pairs)
    with pytest.raises(RuntimeError, match=rf"TRL {re.escape(trl.__version__)}.* first batch"):
        trainer.compute_loss(trainer.model, dict(next(iter(trainer.get_train_dataloader()))))


def test_the_command_relies_on_trls_launcher():
    resolve = importlib.import_module("trl.cli.accelerate_config").resolve_accelerate_config_argument
    resolved = resolve(["--accelerate_config", "fsdp2", "--num_processes", "2"])
    assert resolved[0] == "--config_file", VERSIONS
    assert resolved[1].endswith("fsdp2.yaml"), VERSIONS
    assert resolved[2:] == ["--num_processes", "2"], VERSIONS

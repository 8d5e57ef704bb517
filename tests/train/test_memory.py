"""The estimate against published counts, the numbers of the ZeRO paper, and the tensors of real runs."""

import pytest
import torch
from conftest import byte_tokenizer, tiny_config
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from trl_capo import CAPOTrainer
from trl_capo.train.memory import ModelShape, activations, estimate, model_shape

CONFIG = tiny_config(hidden_size=64, intermediate_size=160, num_hidden_layers=4, architectures=["LlamaForCausalLM"])
LORA = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, architectures=["LlamaForCausalLM"],
)  # fmt: skip
FULL, ADAPTER = ModelConfig(), ModelConfig(use_peft=True)


def test_parameters_are_those_of_the_published_model_and_parts_of_a_small_one_by_hand():
    """h 64, queries and keys 64, inner 160, V 260: linear layers of 4 x 64 x 64 and 3 x 64 x 160 weights a layer."""
    assert model_shape(LLAMA).parameters == 8_030_261_248
    shape = model_shape(CONFIG, LORA)
    assert shape.linear == 4 * (4 * 64 * 64 + 3 * 64 * 160)
    assert shape.head == 260 * 64
    assert shape.parameters == shape.linear + 2 * shape.head + (4 * 2 + 1) * 64
    assert shape.adapter == 4 * 3 * (4 * (64 + 64) + 3 * (64 + 160))
    assert shape.adapter_inputs == 6 * 64 + 160


def test_the_numbers_of_the_zero_paper(make_args):
    """Figure 1 of arXiv 1910.02054: 7.5e9 parameters, Adam, 64 devices: 120 GB, 16.6 GB and 1.9 GB per device."""
    shape, args = ModelShape(7_500_000_000, 0, 0, 1, 0, 0, 0, 1), make_args(precompute_ref_log_probs=True)
    for sharding, processes, expected in (("zero2", 1, 120), ("zero2", 64, 16.6), ("zero3", 64, 1.9)):
        terms = estimate(shape, args, FULL, tokens=0, weight_bytes=4, processes=processes, sharding=sharding)
        size = sum(terms[name] for name in ("weights", "gradients", "optimizer"))
        assert size / 1e9 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_gradients_and_optimizer_are_those_of_a_training(make_args, pairs, tmp_path, lora, dtype):
    LlamaForCausalLM(CONFIG).to(dtype).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    args = make_args(max_steps=1, model_init_kwargs={"dtype": dtype})
    trainer = CAPOTrainer(str(tmp_path / "model"), args=args, train_dataset=pairs, peft_config=lora)
    trainer.train()
    model_args = FULL if lora is None else ADAPTER
    terms = estimate(model_shape(CONFIG, lora), args, model_args, tokens=64, weight_bytes=dtype.itemsize)
    assert terms["weights"] == sum(parameter.nbytes for parameter in trainer.model.parameters())
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert terms["gradients"] == sum(parameter.nbytes for parameter in trained)
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
    assert terms["optimizer"] == sum(value.nbytes for value in states)
    kept = [] if trainer.ref_model is None else trainer.ref_model.parameters()
    assert terms["reference"] == sum(parameter.nbytes for parameter in kept)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_what_autograd_saves(weights, autocast):
    """8 sequences of 128 tokens through the layers; every storage counts once, and the model's own does not count."""
    model = LlamaForCausalLM(CONFIG).to(weights).train()
    own, saved = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        model.model(input_ids=torch.zeros(8, 128, dtype=torch.long), use_cache=False)
    measured = sum(storage.nbytes() for place, storage in saved.items() if place not in own)
    computed = 2 if autocast else weights.itemsize
    kept = activations(model_shape(CONFIG), weights.itemsize, computed, 128, checkpointing=False)
    assert 8 * 128 * kept == pytest.approx(measured, rel=0.06)


def test_what_saves_memory_saves_it(make_args):
    full, lora = model_shape(LLAMA), model_shape(LLAMA, LORA)
    args, small = make_args(), make_args(optim="adamw_8bit")
    optimizers = [estimate(full, each, FULL, tokens=1, weight_bytes=4)["optimizer"] for each in (args, small)]
    assert optimizers[0] == 4 * optimizers[1]
    bits = [ModelConfig(use_peft=True, load_in_4bit=True, use_bnb_nested_quant=nested) for nested in (False, True)]
    weights = [estimate(lora, args, each, tokens=1, weight_bytes=2)["weights"] for each in (ADAPTER, *bits)]
    assert weights == sorted(weights, reverse=True)
    kept = [activations(full, 4, 4, 1024, checkpointing=checkpointing) for checkpointing in (False, True)]
    assert kept[0] > 10 * kept[1]

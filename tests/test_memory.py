"""The estimate against published counts, the ZeRO paper's numbers, and the tensors of real trainings."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config
from peft import LoraConfig
from transformers import LlamaForCausalLM, TrainerCallback

from trl_capo import CAPOTrainer
from trl_capo.memory import GIB, ModelShape, Setting, _activations, estimate, model_shape
from trl_capo.memory_table import MODELS

CONFIG = tiny_config(hidden_size=64, intermediate_size=160, num_hidden_layers=4, architectures=["LlamaForCausalLM"])
LORA = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
PUBLISHED = [494_032_768, 1_235_814_400, 999_885_952, 3_212_749_824, 8_030_261_248, 70_553_706_496]


@pytest.mark.parametrize(("name", "parameters"), zip(MODELS, PUBLISHED, strict=True))
def test_parameters_are_those_of_the_published_models(name, parameters):
    assert model_shape(MODELS[name]).parameters == parameters


def test_parts_of_a_model_by_hand():
    """h 64, queries and keys 64, inner 160, V 260: linear layers of 4 x 64 x 64 and 3 x 64 x 160 weights a layer."""
    shape = model_shape(CONFIG, LORA)
    assert shape.linear == 4 * (4 * 64 * 64 + 3 * 64 * 160)
    assert shape.head == 260 * 64
    assert shape.layer == 4 * 64 * 64 + 3 * 64 * 160 + 2 * 64
    assert shape.parameters == 4 * shape.layer + 2 * shape.head + 64
    assert shape.adapter == 4 * 3 * (4 * (64 + 64) + 3 * (64 + 160))
    assert shape.adapter_inputs == 6 * 64 + 160


def test_the_numbers_of_the_zero_paper():
    """Figure 1 of arXiv 1910.02054: 7.5e9 parameters, Adam, 64 devices: 120 GB, 16.6 GB and 1.9 GB a device."""
    shape = ModelShape(7_500_000_000, *[0] * 9)
    for sharding, count, expected in (("zero2", 1, 120), ("zero2", 64, 16.6), ("zero3", 64, 1.9)):
        terms = estimate(shape, Setting(0, 0, processes=count, sharding=sharding))
        assert sum(terms.values()) / 1e9 == pytest.approx(expected, abs=0.05)


class States(TrainerCallback):
    """Bytes of gradients, seen before the optimiser takes them."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_gradients_and_optimizer_are_those_of_a_training(make_args, pairs, tmp_path, lora, dtype):
    from conftest import byte_tokenizer

    LlamaForCausalLM(CONFIG).to(dtype).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    args = make_args(max_steps=1, model_init_kwargs={"dtype": dtype})
    trainer = CAPOTrainer(str(tmp_path / "model"), args=args, train_dataset=pairs, peft_config=lora)
    trainer.add_callback(seen := States())
    trainer.train()
    shape = model_shape(CONFIG, lora)
    terms = estimate(shape, Setting(4, 64, dtype.itemsize, dtype.itemsize, reference=lora is None))
    assert terms["weights"] == sum(parameter.nbytes for parameter in trainer.model.parameters())
    assert terms["gradients"] == seen.gradients
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
    assert terms["optimizer"] == sum(value.nbytes for value in states)
    kept = [] if trainer.ref_model is None else trainer.ref_model.parameters()
    assert terms["reference"] == sum(parameter.nbytes for parameter in kept)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_what_autograd_saves(weights, autocast):
    """8 sequences of 128 tokens through the layers; every storage once, the model's own left out."""
    model = LlamaForCausalLM(CONFIG).to(weights).train()
    own, saved = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros(8, 128, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    measured = sum(storage.nbytes() for place, storage in saved.items() if place not in own)
    compute = 2 if autocast else weights.itemsize
    setting = Setting(4, 128, weights.itemsize, compute, checkpointing=False)
    assert hidden.shape == (8, 128, 64)
    assert _activations(model_shape(CONFIG), setting, weights.itemsize) == pytest.approx(measured, rel=0.1)


def test_the_head_takes_a_tile_and_not_the_logits():
    """2,048 tokens, V 262,144, h 1,152: a tile of 2,048 x 32,768 in 2 bytes, hidden states and gradients of 6."""
    shape, setting = model_shape(MODELS["1B (Gemma 3)"]), Setting(1, 1024)
    expected = 2048 * 32768 * 2 + 2048 * 1152 * 6 + 262144 * 1152 * 4
    assert estimate(shape, setting)["head"] == expected
    logits = 2 * 64 * setting.tokens * 262144 * 6  # with a copy in float32
    assert estimate(shape, replace(setting, pairs=64))["head"] < logits / 20


def test_what_saves_memory_saves_it():
    shape, lora = (model_shape(MODELS["8B (Llama 3.1)"], peft) for peft in (None, LORA))
    plain = Setting(4, 1024, reference=True, processes=8, sharding="ddp")
    frozen = replace(plain, weight_bytes=2, reference=False)
    steps = [
        (shape, plain),
        (shape, replace(plain, reference=False)),
        (shape, replace(plain, reference=False, optimizer="adam 8 bit")),
        (shape, replace(plain, reference=False, sharding="zero2")),
        (shape, replace(plain, reference=False, sharding="zero3")),
        (lora, frozen),
        (lora, replace(frozen, bits=4.5)),
        (lora, replace(frozen, bits=4.127)),
    ]
    sizes = [sum(estimate(*step).values()) / GIB for step in steps]
    order = [0, 1, 2, 3, 5, 6, 7]  # sharded over 8, an 8B model takes about as much as its adapters on one
    assert [sizes[place] for place in order] == sorted((sizes[place] for place in order), reverse=True)
    assert sizes[4] < sizes[3]
    gradients = [estimate(shape, changed)["gradients"] for changed in (plain, replace(plain, processes=1))]
    assert gradients == [
        8 * shape.parameters,
        4 * shape.parameters,
    ]  # with DistributedDataParallel's buckets, and alone
    kept = replace(plain, checkpointing=False)
    assert estimate(shape, kept)["activations"] > 10 * estimate(shape, plain)["activations"]

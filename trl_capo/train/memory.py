"""Estimate the peak memory per device of a preference-tuning run, from the shape of its model and its settings.

docs/dry_run.md explains each term with its source and compares estimates with measured runs. The terms are summed
as if all of them peaked together. Not counted: CUDA context, communication buffers, fragmentation, evaluation.
"""

import math
from typing import NamedTuple

import torch
import transformers
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from trl import DPOConfig, ModelConfig

TILE_TOKENS, TILE_WORDS = 4096, 32768  # TRL's fused head computes the logits in tiles of this size
CPU_TILES = 8  # float32 copies of a tile that a CPU needs at a time (measured)


class ModelShape(NamedTuple):
    """Counts of parameters (first line), widths in features, and the number of layers."""

    parameters: int
    linear: int  # weights of linear layers without the head
    head: int
    hidden: int
    queries: int  # all heads together
    keys: int
    inner: int  # of the MLP
    layers: int
    adapter: int = 0  # trained parameters of adapters; 0 if the whole model trains
    adapter_inputs: int = 0  # summed input widths of the adapted linear layers, per layer


def model_shape(config: PretrainedConfig, peft_config: PeftConfig | None = None) -> ModelShape:
    """Build the model of `config` on the meta device, where it takes no memory, and count its parameters.

    Raises `ValueError` if the adapter does not fit the model, and `AttributeError` for a model without attention.
    """
    text = config.get_text_config()
    options = text.to_dict()
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config) if architecture is None else architecture(config)
    linear = {module for module in model.modules() if isinstance(module, nn.Linear)} - {model.get_output_embeddings()}
    width = options.get("head_dim") or text.hidden_size // text.num_attention_heads
    inner = (options.get("moe_intermediate_size") or 0) * (options.get("num_experts_per_tok") or 1)
    inner = inner or options.get("intermediate_size") or 4 * text.hidden_size
    shape = ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear=sum(module.weight.numel() for module in linear),
        head=text.vocab_size * text.hidden_size,
        hidden=text.hidden_size,
        queries=text.num_attention_heads * width,
        keys=(options.get("num_key_value_heads") or text.num_attention_heads) * width,
        inner=inner,
        layers=text.num_hidden_layers,
    )
    if peft_config is None:
        return shape
    with torch.device("meta"):
        adapted = get_peft_model(model, peft_config)
    lora = [module for module in adapted.modules() if hasattr(module, "lora_A") and hasattr(module, "in_features")]
    inputs = math.ceil(sum(module.in_features for module in lora) / shape.layers)
    return shape._replace(adapter=adapted.get_nb_trainable_parameters()[0], adapter_inputs=inputs)


def estimate(
    shape: ModelShape, args: DPOConfig, model_args: ModelConfig, *, tokens: int, weight_bytes: int, processes: int = 1,
    sharding: str = "none",
) -> dict[str, int]:  # fmt: skip
    """Return the bytes per device of every term of docs/dry_run.md; their sum is the peak.

    `tokens`: of the longest sequence; `weight_bytes`: of a loaded weight; `sharding`: "none", "ddp", "zero2", "zero3"
    or "fsdp2".
    """
    n, h, w, c = processes, shape.hidden, weight_bytes, 2 if args.bf16 or args.fp16 else weight_bytes
    deepspeed, fully, whole = sharding in ("zero2", "zero3"), sharding in ("zero3", "fsdp2"), not shape.adapter
    shards, weight_shards = n if fully or deepspeed else 1, n if fully else 1
    bits = 8 * model_args.load_in_8bit or (4.127 if model_args.use_bnb_nested_quant else 4.5) * model_args.load_in_4bit
    frozen = 0 if whole else (shape.parameters - shape.linear) * w + shape.linear * (bits / 8 or w)
    trained, size = (shape.parameters, 4 if sharding == "fsdp2" else w) if whole else (shape.adapter, 2 if bits else 4)
    size = 2 if deepspeed else size  # bytes of a trained weight
    moments = 0.5 if "8bit" in args.optim else 2 if "adam" in args.optim else 0  # in numbers of 4 bytes
    state = 4 + 4 * moments if deepspeed else moments * (size if moments == 2 else 4)
    reference = 0 if model_args.use_peft or args.precompute_ref_log_probs else shape.parameters
    kept = activations(shape, 2 if whole and deepspeed else w, c, tokens, checkpointing=args.gradient_checkpointing)
    tokens *= 2 * args.per_device_train_batch_size
    tile = min(tokens, TILE_TOKENS) * min(shape.head // h, TILE_WORDS)
    terms = {
        "weights": (trained * size + frozen) / weight_shards,
        "autocast": shape.linear * c if whole and c < size and not fully else 0,
        "reference": reference * (2 if deepspeed else w) / weight_shards,
        "gradients": trained * size / shards * (2 if sharding == "ddp" and n > 1 else 1),
        "optimizer": trained * state / shards,
        "gathered": 2 * ((shape.parameters - shape.head) / shape.layers + shape.head) * c if fully and n > 1 else 0,
        "unpacked": h * shape.inner * c if bits else 0,
        "activations": tokens * kept,
        "logits": tile * (c + (4 * CPU_TILES if args.use_cpu else 0)) + tokens * h * (4 + c),
        "head's gradients": 4 * shape.head if whole else 0,
    }
    return {name: math.ceil(value) for name, value in terms.items()}


def activations(shape: ModelShape, stream: int, computed: int, tokens: int, *, checkpointing: bool) -> int:
    """Return the bytes per token that are kept for the backward pass.

    `stream` and `computed`: bytes of a number in the residual stream, and of one that is computed with.
    """
    c, h, whole = computed, shape.hidden, not shape.adapter
    # With frozen weights neither a norm's result nor a linear layer's input is kept, but the adapters' inputs are.
    norms = 2 * h * (4 + (stream if whole else 0))
    copies = 2 if stream == c else 5  # autocast casts the stream again for each linear layer
    inputs = c * (copies * h + shape.queries + shape.inner) if whole else c * shape.adapter_inputs
    layer = norms + inputs + c * (2 * shape.queries + 2 * shape.keys + 3 * shape.inner)
    layers = h * stream * shape.layers + layer if checkpointing else layer * shape.layers
    return layers + 4 * h + tokens * c  # the last two: the final norm, and the mask

"""How much memory a training takes on each device, at its peak: estimated from the model's shape, before it is loaded.

docs/memory.md has a table of it and says how far it is from what was measured.

Counted, in bytes, for P parameters of which P_t train, h hidden units, L layers, V words in the vocabulary, B pairs a
device and so S = 2 B T tokens in sequences of T, weights of w bytes, computed with in c bytes, on N processes:

- weights: P w. In 4 bits the linear layers but for the head have 4.5 bits a weight, 4.127 where the quantisation
  constants are quantised too (QLoRA, arXiv 2305.14314, section 3). Adapters are float32 (PEFT casts 16-bit ones up),
  on quantised models bfloat16 (TRL casts them).
- autocast: c bytes for each weight of trained linear layers where c < w: torch keeps the cast copies in a forward.
- reference: another P w where TRL keeps a second model: full fine-tuning without precomputed log-probs. Adapters are
  switched off instead, and precomputed log-probs need none.
- gradients: of the trained weights, in their type. DistributedDataParallel has them twice, in its buckets.
- optimizer: Adam's two moments, in the weights' type; 2 bytes a parameter with an 8-bit optimizer (arXiv 2110.02861).
  DeepSpeed: 2 bytes for weights and 2 for gradients, and 12 for float32 weights and moments (ZeRO, arXiv 1910.02054,
  section 3.1). FSDP2 keeps float32 weights, gradients and moments under mixed precision.
- shards: ZeRO-2 divides gradients and optimizer by N; ZeRO-3 and FSDP2 the weights (and reference) too.
- gathered, unpacked: two layers, the embedding and the head of sharded weights; a linear layer of quantised ones.
- activations: with gradient checkpointing (arXiv 1604.06174) each layer's input, S h w L, and everything of one layer;
  without, everything of all layers. A layer of the Llama kind keeps, in units of a token: 2 norms, which compute in
  float32, h (4 + w) each; the inputs of trained linear layers, the attention's queries, keys, values and outputs, and
  the three products of the gated unit, in c bytes. Attention maps are not kept (as in arXiv 2205.05198 with
  recomputation), the padding mask is: 2 B T^2 c.
- head: TRL 1.16 never has the logits, which would take S V c bytes and more: it goes through tiles of 4,096 tokens by
  32,768 words, again in the backward. On GPUs a tile is all; a CPU needs eight float32 copies of it at a
  time. Beside it float32 gradients of the head's input, S h, and where the head trains of its weights, V h
  (1.2 GB in Gemma 3 1B, with V = 262,144).

The terms are added as though all had their peaks at once, and every sequence is taken to be T long.
Not counted: the CUDA context, what communication buffers and a fragmented allocator take, evaluation.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

TILE_TOKENS, TILE_WORDS = 4096, 32768
CPU_TILES = 8
MOMENTS = {"adam": 2.0, "adam 8 bit": 0.5, "none": 0.0}
"""How many numbers of 4 bytes an optimizer keeps for a parameter."""
GIB = 2**30


@dataclass(frozen=True)
class ModelShape:
    """What the memory depends on. Widths in features, the rest in numbers of parameters.

    Args:
        parameters: of the model, without adapters; tied weights count once.
        linear: weights of its linear layers but for the head, which quantisation packs.
        head: of the output head, vocabulary times hidden.
        layer: of its largest layer.
        hidden, queries, keys, inner: widths of the residual stream, of all query heads, of all key heads, of the MLP.
        layers: how many.
        vocabulary: words.
        adapter: trained parameters of adapters; 0 where the whole model is trained.
        adapter_inputs: summed input widths of the adapted linear layers, of one layer.
    """

    parameters: int
    linear: int
    head: int
    layer: int
    hidden: int
    queries: int
    keys: int
    inner: int
    layers: int
    vocabulary: int
    adapter: int = 0
    adapter_inputs: int = 0


@dataclass(frozen=True)
class Setting:
    """How the model is trained.

    Args:
        pairs: per device and micro-batch.
        tokens: of the longest sequence.
        weight_bytes: of the loaded weights' type: 4 or 2.
        compute_bytes: of the type computed in: 2 with bf16 or fp16.
        bits: a weight of linear layers, where they are quantised.
        checkpointing: gradient checkpointing.
        reference: whether a second model is kept.
        optimizer: one of MOMENTS.
        processes: N.
        sharding: "none", "ddp", "zero2", "zero3" or "fsdp2".
        gpu: whether TRL's Triton kernel computes the head.
    """

    pairs: int
    tokens: int
    weight_bytes: int = 4
    compute_bytes: int = 2
    bits: float | None = None
    checkpointing: bool = True
    reference: bool = False
    optimizer: str = "adam"
    processes: int = 1
    sharding: str = "none"
    gpu: bool = True


def model_shape(config: PretrainedConfig, peft_config: PeftConfig | None = None) -> ModelShape:
    """The shape of the model of a config: built without memory, so that its parameters are counted, not guessed.

    Raises:
        ValueError: the adapter does not fit the model.
    """
    text = config.get_text_config()
    options = text.to_dict()
    model = empty_model(config)
    with torch.device("meta"):
        shape = _shape(model, text, options)
        if peft_config is None:
            return shape
        adapted = get_peft_model(model, peft_config)
    lora = [module for module in adapted.modules() if hasattr(module, "lora_A") and hasattr(module, "in_features")]
    return replace(
        shape,
        adapter=sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad),
        adapter_inputs=math.ceil(sum(module.in_features for module in lora) / shape.layers),
    )


def empty_model(config: PretrainedConfig) -> transformers.PreTrainedModel:
    """The model of a config on torch's device "meta", where it takes no memory."""
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config) if architecture is None else architecture(config)


def _shape(model: nn.Module, text: PretrainedConfig, options: dict[str, Any]) -> ModelShape:
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    stacks = [child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module]
    heads = text.num_attention_heads
    width = options.get("head_dim") or text.hidden_size // heads
    inner = options.get("intermediate_size") or 4 * text.hidden_size
    if options.get("moe_intermediate_size"):
        inner = options["moe_intermediate_size"] * (options.get("num_experts_per_tok") or 1)
    return ModelShape(
        parameters=count(model),
        linear=sum(module.weight.numel() for module in linear),
        head=text.vocab_size * text.hidden_size,
        layer=max(map(count, stacks)),
        hidden=text.hidden_size,
        queries=heads * width,
        keys=(options.get("num_key_value_heads") or heads) * width,
        inner=inner,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
    )


def count(module: nn.Module) -> int:
    """Parameters; tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def estimate(shape: ModelShape, setting: Setting) -> dict[str, int]:
    """Bytes per device, by the names of the module's terms; their sum is the peak."""
    s, w, c = setting, setting.weight_bytes, setting.compute_bytes
    deepspeed, fully = s.sharding in ("zero2", "zero3"), s.sharding in ("zero3", "fsdp2")
    shards, weight_shards = s.processes if fully or deepspeed else 1, s.processes if fully else 1
    whole = not shape.adapter
    trained = shape.parameters if whole else shape.adapter
    base = shape.parameters * w
    if s.bits is not None:
        base = (shape.parameters - shape.linear) * w + shape.linear * s.bits / 8
    of_trained = (w if s.sharding != "fsdp2" else 4) if whole else (2 if s.bits is not None else 4)
    if deepspeed:
        of_trained = 2
    weights = trained * of_trained + (0 if whole else base)
    terms = {
        "weights": weights / weight_shards,
        "autocast": shape.linear * c if whole and c < of_trained and not fully else 0,
        "reference": (shape.parameters * (2 if deepspeed else w) if s.reference else 0) / weight_shards,
        "gradients": trained * of_trained / shards * (2 if s.sharding == "ddp" and s.processes > 1 else 1),
        "optimizer": trained * _state_bytes(s.optimizer, of_trained, deepspeed) / shards,
        "gathered": (2 * shape.layer + 2 * shape.head) * c if fully and s.processes > 1 else 0,
        "unpacked": 0 if s.bits is None else shape.hidden * shape.inner * c,
        "activations": _activations(shape, s, w if not (whole and deepspeed) else 2),
        "head": _head(shape, s, of_trained if whole else None),
    }
    return {name: math.ceil(value) for name, value in terms.items()}


def _state_bytes(optimizer: str, of_trained: int, deepspeed: bool) -> float:
    """Of one parameter: moments in its type, or of DeepSpeed in float32, with float32 weights."""
    if deepspeed:
        return 4 + 4 * MOMENTS[optimizer]
    return MOMENTS[optimizer] * (of_trained if optimizer == "adam" else 4)


def _activations(shape: ModelShape, setting: Setting, stream: int) -> float:
    """Bytes kept for the backward; `stream` is the size of the residual stream's type."""
    c, h, whole = setting.compute_bytes, shape.hidden, not shape.adapter
    tokens = 2 * setting.pairs * setting.tokens
    # With frozen weights neither a norm's result nor a linear layer's input is kept, but the adapters' inputs are.
    norms = 2 * h * (4 + (stream if whole else 0))
    copies = 2 if stream == c else 5  # autocast casts the stream for each linear layer anew
    inputs = c * (copies * h + shape.queries + shape.inner) if whole else c * shape.adapter_inputs
    attention = c * (2 * shape.queries + 2 * shape.keys)
    layer = norms + inputs + attention + 3 * c * shape.inner
    kept = h * stream * shape.layers + layer if setting.checkpointing else layer * shape.layers
    return tokens * (kept + 4 * h) + 2 * setting.pairs * setting.tokens**2 * c


def _head(shape: ModelShape, setting: Setting, trained: int | None) -> float:
    """Bytes of the fused head; `trained` is the size of its weights' type, where they train."""
    tokens = 2 * setting.pairs * setting.tokens
    tile = min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS)
    tiles = tile * setting.compute_bytes + (0 if setting.gpu else CPU_TILES * tile * 4)
    return tiles + tokens * shape.hidden * (4 + setting.compute_bytes) + (shape.head * 4 if trained else 0)


def peak_memory() -> int:
    """Bytes that this process has taken at most: of the GPU's allocator, or on a CPU the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # where there is none: getrusage also counts the process that started this one
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[1])
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

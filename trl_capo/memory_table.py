"""The table of docs/cluster.md: what each of `configs/` takes, by the size of the model.

python -m trl_capo.memory_table
"""

from dataclasses import replace

from peft import LoraConfig
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config

from trl_capo.memory import GIB, Setting, estimate, model_shape

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128, "architectures": ["LlamaForCausalLM"]}
MODELS = {
    "0.5B (Qwen2.5)": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"],
    ),
    "1B (Llama 3.2)": LlamaConfig(
        **LLAMA | {"head_dim": 64}, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, tie_word_embeddings=True,
    ),
    "1B (Gemma 3)": Gemma3TextConfig(
        vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, tie_word_embeddings=True, architectures=["Gemma3ForCausalLM"],
    ),
    "3B (Llama 3.2)": LlamaConfig(
        **LLAMA, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        tie_word_embeddings=True,
    ),
    "8B (Llama 3.1)": LlamaConfig(
        **LLAMA, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32
    ),
    "70B (Llama 3.1)": LlamaConfig(
        **LLAMA, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
    ),
}  # fmt: skip
"""Shapes of released models."""

PROCESSES = 8
FULL = Setting(pairs=4, tokens=1024, weight_bytes=4)
LORA = Setting(pairs=8, tokens=1024, weight_bytes=2)
QLORA = Setting(pairs=2, tokens=1024, weight_bytes=2, bits=4.127)
FSDP2 = {"sharding": "fsdp2", "processes": PROCESSES}
WAYS = {
    "full": FULL,
    "full, 8 x FSDP2": replace(FULL, **FSDP2),
    "full, 8 x ZeRO-2": replace(FULL, sharding="zero2", processes=PROCESSES),
    "full, 8 x FSDP2, live reference": replace(FULL, **FSDP2, reference=True),
    "LoRA": LORA,
    "LoRA, 8 x FSDP2": replace(LORA, **FSDP2),
    "QLoRA": QLORA,
}
"""What is trained, and the Setting that the configs have."""


def table() -> str:
    """Markdown: GiB per device of every model and way to train it."""
    lora = LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")
    lines = ["| model | parameters | " + " | ".join(WAYS) + " |", "|---|---:|" + "---:|" * len(WAYS)]
    for name, config in MODELS.items():
        full, adapted = model_shape(config), model_shape(config, lora)
        sizes = [estimate(full if way.startswith("full") else adapted, of) for way, of in WAYS.items()]
        cells = " | ".join(f"{sum(size.values()) / GIB:,.1f}" for size in sizes)
        lines.append(f"| {name} | {full.parameters:,} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

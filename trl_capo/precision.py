"""Training in bfloat16 on a processor without arithmetic for it: it works, so that nothing but the clock tells.

TRL's `bf16` is on by default, on a CPU too. Where oneDNN has no products of bfloat16 matrices for the processor (on
x86 it needs AVX-512 or AVX-NE-CONVERT, which most laptops are without), PyTorch computes them one number at a time:
docs/performance.md has what that costs.
"""

import torch


def lacks_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are slow on this machine's processor."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def bfloat16_warnings(*, on_cpu: bool, bf16: bool, dtype: torch.dtype | str | None) -> list[str]:
    """What there is to say of a training in these types on this machine: nothing, or one warning.

    Args:
        on_cpu: whether that is where it computes.
        bf16: the option of that name.
        dtype: of the model's weights, as PyTorch has or names it.
    """
    asking = ["bf16: false"] if bf16 else []
    asking += ["dtype: float32"] if str(dtype).removeprefix("torch.") == "bfloat16" else []
    if not (on_cpu and asking and lacks_bfloat16()):
        return []
    return [
        "training in bfloat16 on a processor without arithmetic for it can take a hundred times as long as in "
        f"float32. Set {' and '.join(asking)}."
    ]

"""Run a model on preference pairs without padding, computing the common beginning of each pair once.

TRL pads `[chosen; rejected]` to the longest sequence and computes every prompt twice. `PaddingFree` makes the same
call on rows of concatenated pairs, and returns what the padded batch would have given, up to rounding:

    tokens     p0 p1 p2 c0 c1 p2 r0 r1 r2 | next pair ...     p2 occurs twice, since it predicts both c0 and r0;
    positions   0  1  2  3  4  2  3  4  5 |  0 ...            c2 and r3, the last tokens, would predict nothing
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from torch import Tensor
from trl.trainer import utils

PER_TOKEN = {"log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"}  # of TRL's output
PADDED = "alibi attention_chunk_size attention_dropout output_router_logits use_bidirectional_attention"  # if true
BATCH = ("input_ids", "attention_mask", "labels")
ATTENTION_COST = 2  # a row of ATTENTION_COST * hidden_size tokens takes as long in attention as in everything else
logger = get_logger(__name__)


class PaddingFree:
    """Call causal language models on packed rows instead of padded batches.

    `model` is the unwrapped model, with or without an adapter. Where packing cannot be exact, batches are padded and a
    warning says why. A pair of the first batch is computed both ways; if this differs by more than rounding, batches
    are padded. `exact` says that models in float32 compute in it; `gather` collects a tensor from all processes.
    """

    def __init__(self, model: Any, exact: bool = True, gather: Callable[..., Tensor] = Tensor.detach) -> None:
        self._config, self._gather = model.config.get_text_config(), gather
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        dtype, modeling = base.get_input_embeddings().weight.dtype, sys.modules[type(base.base_model).__module__]
        exact = exact and dtype == torch.float32 and not getattr(base, "is_quantized", False)
        self._limit = 1e-4 if exact else 0.02  # relative error; rounding to bfloat16 causes up to 0.004
        self._mask_dtype = dtype if self._config._attn_implementation == "eager" else None
        has_window = hasattr(modeling, "create_sliding_window_causal_mask")  # other models ignore the option
        self._window = getattr(self._config, "sliding_window", None) if has_window else None
        self._checked = self._padded = False
        if obstacle := _obstacle(model, base, self._config):
            self._pad(obstacle)

    def __call__(self, model: Callable[..., Any], **inputs: Any) -> Any:
        """Return what `model(**inputs)` would return, with per-token fields as (2B, T-1).

        `model` is the constructor's or a wrapper of it, with TRL's fused head. The inputs are options and (2B, T)
        `input_ids`, `attention_mask` and `labels`, with rows `[chosen; rejected]`."""
        if (others := inputs.keys() - {*BATCH, "use_cache", "fused_lm_head"}) and not self._padded:
            self._pad(f"the model's inputs include {', '.join(sorted(others))}")
        if self._padded or not inputs.get("fused_lm_head"):
            return model(**inputs)
        packing = Packing(*(inputs[name] for name in BATCH), self._config.hidden_size)
        mask = packing.attention_mask(self._config, self._window, self._mask_dtype)
        rows = {"input_ids": packing.input_ids, "position_ids": packing.position_ids, "shift_labels": packing.labels}
        with _score_labels_only():
            output = model(**rows, attention_mask=mask, use_cache=False, fused_lm_head=True)
        for name in PER_TOKEN & output.keys():
            output[name] = packing.unpack(output[name])
        output["loss"] = -output["log_probs"].sum() / output["label_mask"].sum().clamp(min=1)
        return output if self._checked else self._check(output, model, inputs, packing.last_pair)

    def _check(self, output: Any, model: Callable[..., Any], inputs: dict[str, Any], pair: list[int]) -> Any:
        with torch.no_grad(), _score_labels_only():
            expected = model(**inputs | {name: inputs[name][pair] for name in BATCH}).log_probs
        self._checked = True
        error = (output["log_probs"][pair].detach() - expected).abs().sum() / expected.abs().sum().clamp(min=1e-6)
        if (error := self._gather(error[None]).max()) > self._limit:  # the same on all processes, which must agree
            self._pad(f"the log-probabilities of a pair differ by {error:.2%} from those that padding gives")
        return model(**inputs) if self._padded else output

    def _pad(self, reason: str) -> None:
        self._padded = True
        logger.warning(f"padding_free=True has no effect, because {reason}.")


def _obstacle(model: Any, base: Any, config: Any) -> str | None:
    """Return why the model cannot be called on packed rows, or None."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    peft, attention = getattr(model, "active_peft_config", None), config._attn_implementation
    obstacles = {
        "the model takes images": config is not model.config,
        "prompt learning prepends tokens to each sequence": getattr(peft, "is_prompt_learning", False),
        f"the model has layers of the type {', '.join(sorted(kinds))}": kinds,
        "models of this class can have recurrent layers": base._is_stateful,
        f"attn_implementation is {attention!r}, not 'sdpa' or 'eager'": attention not in ("sdpa", "eager"),
        "the model does not use Transformers' common attention": not base.base_model._supports_attention_backend,
    }
    obstacles |= {f"{name} is {getattr(config, name, None)}": getattr(config, name, None) for name in PADDED.split()}
    return next((obstacle for obstacle, holds in obstacles.items() if holds), None)


@contextlib.contextmanager
def _score_labels_only() -> Iterator[None]:
    """Let TRL's fused head skip positions without a label on CPUs; TRL 1.16 does so only where Triton runs."""
    before, utils._use_triton = utils._use_triton, lambda device: device.type == "cpu" or before(device)
    try:
        yield
    finally:
        utils._use_triton = before


class Packing:
    """Lay out a padded batch of (2B, T) tokens, with rows `[chosen; rejected]`, in R rows of N tokens.

    `input_ids`, `position_ids` and `labels` (the next tokens, -100 where they are not scored) are (R, N).
    """

    def __init__(self, ids: Tensor, mask: Tensor, labels: Tensor, hidden_size: int) -> None:
        self._pairs, real = len(ids) // 2, F.pad(mask[:, 1:] & mask[:, :-1], (0, 1)).bool()  # without the last token
        same = (ids[: self._pairs] == ids[self._pairs :]) & real[: self._pairs] & real[self._pairs :]
        counts = torch.cat([real.sum(dim=1), same.cumprod(dim=1).sum(dim=1)]).tolist()
        starts, shared, shape = _lay_out(counts[: len(ids)], counts[len(ids) :], hidden_size)
        last = max(range(self._pairs), key=lambda pair: starts[pair] % shape[1])  # most tokens lie before it
        self.last_pair = [last, self._pairs + last]
        first, shared = torch.tensor([starts, [0] * self._pairs + shared], device=ids.device)[:, :, None]
        position = real.cumsum(dim=1) - 1
        own = real & (position >= shared)  # not shared with the chosen sequence
        slot = (first + position).where(own, 0)  # flat index of a token in the rows
        slot[self._pairs :] += slot[: self._pairs].where((real & ~own)[self._pairs :], 0)

        def spread(values: Tensor, where: Tensor, fill: int = 0) -> Tensor:
            rows = torch.full((shape[0] * shape[1],), fill, device=ids.device)
            return rows.index_put((slot[where],), values.expand_as(ids)[where]).view(shape)

        self.input_ids, self.position_ids = spread(ids, real), spread(position, real)
        self._has_label, self._slot = labels[:, 1:] != -100, slot[:, :-1]
        self.labels = spread(labels.roll(-1, dims=1), F.pad(self._has_label, (0, 1)), fill=-100)
        self._sequence = spread(torch.arange(len(ids), device=ids.device)[:, None], own, fill=-1)  # row of the batch
        self._shared = spread(shared, own)  # tokens that this row shares with the chosen one

    def unpack(self, values: Tensor) -> Tensor:
        """Return (R, N) values of the packed tokens as (2B, T-1), zero where no next token is scored."""
        return values.flatten()[self._slot] * self._has_label

    def attention_mask(self, config: Any, window: int | None, dtype: torch.dtype | None) -> Any:
        """Return the (R, 1, N, N) mask, or one for each type of layer: true where a token attends, or added scores.

        A token attends to the earlier tokens of its own sequence, which begins with the tokens that its pair shares.
        """
        query, key = self.position_ids[:, None, :, None], self.position_ids[:, None, None, :]
        own, other = self._sequence[:, None, :, None], self._sequence[:, None, None, :]
        common = (other == own - self._pairs) & (key < self._shared[:, None, :, None])
        full = ((other == own) | common) & (key <= query)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        near = full & (query - key < window) if window else full
        masks = {kind: near if kind == "sliding_attention" else full for kind in kinds}
        if dtype is not None:
            masks = {kind: (~mask).to(dtype) * torch.finfo(dtype).min for kind, mask in masks.items()}
        return masks if len(masks) > 1 else masks.popitem()[1]


def _lay_out(lengths: list[int], common: list[int], hidden_size: int) -> tuple[list, list, tuple]:
    """Return the flat start of each sequence, the number of tokens each pair shares, and the shape of the rows.

    `lengths` are those of 2B sequences, `common` those of B common beginnings. The cheapest of a few widths is used,
    since attention costs more per token in wider rows. A pair longer than the width shares nothing.
    """
    pairs, found, common = len(common), [], [max(n - 1, 0) for n in common]  # the last one occurs twice
    sizes = [a + b - n for n, a, b in zip(common, lengths[:pairs], lengths[pairs:], strict=True)]
    for width in [int(scale * max(1, *lengths)) for scale in (1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16)]:
        shared = [n * (size <= width) for n, size in zip(common, sizes, strict=True)]
        pieces = [(sizes[i], i, pairs + i) for i in range(pairs) if shared[i]]
        pieces += [(length, i) for i, length in enumerate(lengths) if not shared[i % pairs]]
        used, places = [], {}
        for size, *members in sorted(pieces, reverse=True):  # first-fit decreasing
            row = next((row for row, tokens in enumerate(used) if tokens + size <= width), len(used))
            used += [0] * (row == len(used))
            places |= dict.fromkeys(members, (row, used[row]))
            used[row] += size
        shape = len(used), max(1, *used)
        after = [0] * pairs + [(length - n) * (n > 0) for length, n in zip(lengths[:pairs], shared, strict=True)]
        starts = [places[i][0] * shape[1] + places[i][1] + after[i] for i in range(2 * pairs)]
        found.append((shape[0] * shape[1] * (ATTENTION_COST * hidden_size + shape[1]), starts, shared, shape))
    return min(found)[1:]

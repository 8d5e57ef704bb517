"""Make studies on CPUs faster, which changes results only by rounding.

If only the upper layers are trained, the lower ones compute the same hidden states for a sequence in every epoch and
run, so these and the reference's log-probabilities are cached. Not covered: images, dropout in frozen layers, padding
on the left, and hidden states that do not fit in memory. Sequences are packed, since repeated prompts and padding are
more than half of the decoder's work. What cannot be packed runs unchanged: padding on the left, cached keys and
values, custom position ids, sequences longer than a sliding window, calls that request hidden states, a cache or
router logits, attention other than `sdpa` or in chunks, and recurrent layers.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

ROW_LENGTH = 128  # tokens per packed row: attention grows with its square, and shorter rows have more padding


class SequenceCache:
    """Store one tensor per sequence of tokens, in memory and in a .safetensors file that other processes read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, Tensor] = load_file(path) if path.is_file() else {}
        self._changed = False

    def get(self, keys: list[str]) -> list[Tensor] | None:
        """Return the tensors of all keys, or None if one is missing."""
        return [self._tensors[key] for key in keys] if self._tensors.keys() >= set(keys) else None

    def put(self, keys: list[str], tensors: Iterable[Tensor]) -> None:
        self._tensors |= {key: tensor.detach().cpu().clone() for key, tensor in zip(keys, tensors, strict=True)}
        self._changed = True

    def save(self) -> None:
        """Write the file if there are new tensors; if several processes write it, the last one wins."""
        if not self._changed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        save_file(self._tensors, unfinished)
        os.replace(unfinished, self.path)
        self._changed = False


def sequence_keys(input_ids: Tensor, attention_mask: Tensor, *masks: Tensor) -> list[str] | None:
    """Return a key per row from its tokens and the sums of further masks; None if a row is not padded on the right."""
    if not is_right_padded(attention_mask):
        return None
    sums = [mask.sum(dim=1).tolist() for mask in (attention_mask, *masks)]
    texts = [f"{ids[:length]} {extra}" for ids, length, *extra in zip(input_ids.tolist(), *sums, strict=True)]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


class FrozenLayers:
    """Replace the lowest `count` layers of a causal language model by their output in the cache, where it is known.

    A forward pass raises ValueError if one of these layers, or the embedding, is trained.
    """

    def __init__(self, model: Any, count: int, cache: SequenceCache) -> None:
        self._count, self._cache = count, cache
        self._keys: list[str] | None = None
        self._lengths: list[int] = []
        self._cached: Tensor | None = None
        decoder = model.get_decoder()
        decoder.register_forward_pre_hook(self._look_up, with_kwargs=True)
        for index, layer in enumerate(decoder.layers[:count]):
            layer.forward = partial(self._forward, layer.forward, index == count - 1)

    def _look_up(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        frozen = [decoder.get_input_embeddings(), *decoder.layers[: self._count]]
        if any(parameter.requires_grad for part in frozen for parameter in part.parameters()):
            raise ValueError(
                f"the output of the lowest {self._count} layers is cached, but one of them or the embedding is "
                "trained: name only higher layers in LoRA's layers_to_transform, or set remember_frozen_layers=False"
            )
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        self._keys = None if ids is None or mask is None else sequence_keys(ids, mask)
        self._lengths = mask.sum(dim=1).tolist() if self._keys else []
        tensors = self._keys and self._cache.get(self._keys)
        self._cached = None
        if tensors:  # the batch may have columns of padding
            states = pad_sequence(tensors, batch_first=True).to(ids.device)
            self._cached = F.pad(states, (0, 0, 0, ids.shape[1] - states.shape[1]))

    def _forward(self, compute: Callable, last: bool, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._cached is not None:
            return self._cached if last else states
        output = compute(states, *args, **kwargs)
        if last and self._keys:
            self._cache.put(self._keys, [row[:n] for n, row in zip(self._lengths, output, strict=True)])
        return output


@contextlib.contextmanager
def score_completions_only() -> Iterator[None]:
    """Let TRL's fused output head skip prompts and padding on CPUs, as TRL 1.16 does only where Triton runs."""
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda device: torch.device(device).type == "cpu" or before(device)
    try:
        yield
    finally:
        utils._use_triton = before


class PackedLayers:
    """Run the layers of a causal language model from `first` upward on packed rows; those below see padded batches."""

    def __init__(self, model: Any, first: int, row_length: int = ROW_LENGTH) -> None:
        decoder = model.get_decoder()
        config, layers = decoder.config, decoder.layers[first:]
        other = ("use_bidirectional_attention", "attention_chunk_size", "output_router_logits", "output_hidden_states")
        self._supported = config._attn_implementation == "sdpa" and not any(getattr(config, n, None) for n in other)
        self._supported &= set(getattr(config, "layer_types", None) or []) <= {"full_attention", "sliding_attention"}
        self._supported &= not any(isinstance(part, nn.Conv1d) for part in layers.modules())  # recurrent layers
        self._row_length, self._window = row_length, getattr(config, "sliding_window", None)
        self._packing: Packing | None = None
        self._first = layers[0]
        decoder.register_forward_pre_hook(self._plan, with_kwargs=True)
        for layer in layers:
            layer.register_forward_pre_hook(self._pack, with_kwargs=True)
        layers[-1].register_forward_hook(self._unpack)

    def _plan(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        self._packing = None
        extra_outputs = ("use_cache", "output_hidden_states", "output_router_logits", "output_attentions")
        other = any(kwargs.get(name) is not None for name in ("past_key_values", "position_ids"))
        other = other or any(kwargs.get(name) for name in extra_outputs)
        usable = self._supported and not other and ids is not None and mask is not None and mask.ndim == 2
        if usable and is_right_padded(mask) and ids.shape[1] <= (self._window or ids.shape[1]):
            self._packing = Packing(ids, mask.bool(), self._row_length)

    def _pack(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        packing = self._packing
        if packing is None or "position_embeddings" not in kwargs:
            self._packing = None
            return None
        states, *others = args
        if layer is self._first:
            states = states[packing.rows.clamp(min=0), packing.positions]
        embeddings = tuple(table[0, packing.positions] for table in kwargs["position_embeddings"])
        packed = {"attention_mask": packing.mask, "position_ids": packing.positions, "position_embeddings": embeddings}
        return (states, *others), kwargs | packed

    def _unpack(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return None if self._packing is None else output.flatten(0, 1)[self._packing.source]


class Packing:
    """Map a batch `[chosen; rejected]` to packed rows in which a rejected sequence shares its pair's common prefix.

    `ids` are (B, T) tokens, padded on the right, and `real` marks those that are not padding. Attributes:
        rows, positions: (R, N) batch row and position of every packed token; padding has a negative row, position 0.
        source: (B, T) flat index of the packed token for every position of the batch; 0 at padding.
        mask: (R, 1, N, N), true where a token attends to another.
    """

    def __init__(self, ids: Tensor, real: Tensor, row_length: int) -> None:
        count = len(ids)
        half = count // 2 if count % 2 == 0 else count  # a batch of odd size has no pairs
        shared = torch.zeros_like(real)
        if half < count:
            shared[half:] = ((ids[:half] == ids[half:]) & real[:half] & real[half:]).cumprod(dim=1)
        rows, positions = (real & ~shared).nonzero(as_tuple=True)
        order = torch.argsort(rows % half, stable=True)  # by pair
        rows, positions = rows[order], positions[order]
        lengths = torch.bincount(rows % half, minlength=half)
        starts, width, height = _fill_rows(lengths.tolist(), row_length)
        offsets = torch.tensor(starts, device=ids.device) - lengths.cumsum(0) + lengths
        slots = offsets[rows % half] + torch.arange(len(rows), device=ids.device)
        empty = torch.full((height * width,), -count, device=ids.device)
        self.rows = empty.index_copy(0, slots, rows).view(height, width)
        self.positions = torch.zeros_like(empty).index_copy(0, slots, positions).view(height, width)
        self.source = torch.zeros_like(ids).index_put((rows, positions), slots)
        self.source[half:] = torch.where(shared[half:], self.source[: count - half], self.source[half:])
        prefix = shared.sum(dim=1)[self.rows.clamp(min=0)]
        causal = self.positions[:, None, :] <= self.positions[:, :, None]
        same_row = self.rows[:, None, :] == self.rows[:, :, None]
        chosen_row = self.rows[:, None, :] == self.rows[:, :, None] - half
        in_prefix = self.positions[:, None, :] < prefix[:, :, None]
        self.mask = (same_row & causal | chosen_row & in_prefix)[:, None]


def _fill_rows(lengths: list[int], row_length: int) -> tuple[list[int], int, int]:
    """Return the flat start of each length, and the width and number of rows, by first-fit decreasing bin packing."""
    width = min(sum(lengths), max(row_length, *lengths))
    filled: list[int] = []
    starts = [0] * len(lengths)
    for pair in sorted(range(len(lengths)), key=lambda pair: -lengths[pair]):
        row = next((i for i, used in enumerate(filled) if used + lengths[pair] <= width), len(filled))
        filled += [0] * (row == len(filled))
        starts[pair] = row * width + filled[row]
        filled[row] += lengths[pair]
    return starts, width, len(filled)


def is_right_padded(mask: Tensor) -> bool:
    """Return whether every row of a (B, T) attention mask is ones followed by zeros."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.equal(mask.bool(), positions < mask.sum(dim=1, keepdim=True))

"""Every token computed once: a batch in one row, without padding, and a pair's prompt once for both its answers.

A batch of pairs repeats each prompt and pads every sequence to the longest. Where the layers are all that costs, as
on a CPU, more than half of that is work that nobody needs. Results agree with those of the padded batch, but for
rounding.

Not covered, and left as they are: batches padded on the left, with keys and values from before, with positions of
their own, or longer than a sliding window; attention other than PyTorch's (`sdpa`); layers that do not take position
embeddings as those of Transformers' decoders do.
"""

from typing import Any

import torch
from torch import Tensor, nn


class PackedLayers:
    """Runs the layers from `first` on over a packed row in the place of a padded batch.

    Args:
        model: a causal language model of Transformers whose decoder runs `layers` one after the other.
        first: the lowest layer that is packed; those below see the batch as it is.
    """

    def __init__(self, model: Any, first: int) -> None:
        decoder = model.get_decoder()
        config = decoder.config
        both_ways = getattr(config, "use_bidirectional_attention", None)
        self._usable = config._attn_implementation == "sdpa" and not both_ways
        self._window = getattr(config, "sliding_window", None)
        self._packing: Packing | None = None
        decoder.register_forward_pre_hook(self._plan, with_kwargs=True)
        layers = decoder.layers[first:]
        for layer in layers:
            layer.register_forward_pre_hook(self._pack, with_kwargs=True)
        layers[-1].register_forward_hook(self._unpack)

    def _plan(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        self._packing = None
        if not self._usable or ids is None or mask is None or mask.ndim != 2:
            return
        if any(kwargs.get(name) is not None for name in ("past_key_values", "position_ids")):
            return
        if padded_on_the_right(mask) and ids.shape[1] <= (self._window or ids.shape[1]):
            self._packing = Packing(ids, mask.bool())

    def _pack(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        packing = self._packing
        if packing is None or "position_embeddings" not in kwargs:
            self._packing = None
            return None
        states, *others = args
        if states.shape[:2] == packing.source.shape:
            states = states[packing.rows, packing.places][None]
        own = {"attention_mask": packing.mask, "position_ids": packing.places[None]}
        own["position_embeddings"] = tuple(table[:1, packing.places] for table in kwargs["position_embeddings"])
        return (states, *others), kwargs | own

    def _unpack(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return None if self._packing is None else output[0][self._packing.source]


class Packing:
    """How a batch is packed: a row of the second half shares its beginning with the row of the first half it is like.

    Args:
        ids: (B, T) tokens, padded on the right.
        real: (B, T), false at padding.

    Attributes:
        rows, places: (N,) the row and place that each packed token is taken from.
        source: (B, T) the packed token of every place of the batch; 0 at padding.
        mask: (1, 1, N, N), true where a token attends to another.
    """

    def __init__(self, ids: Tensor, real: Tensor) -> None:
        count, half = len(ids), len(ids) // 2
        shared = torch.zeros_like(real)
        if half * 2 == count:
            same = (ids[:half] == ids[half:]) & real[:half] & real[half:]
            shared[half:] = same.cumprod(dim=1).bool()
        taken = real & ~shared
        self.rows, self.places = taken.nonzero(as_tuple=True)
        self.source = torch.zeros(ids.shape, dtype=torch.long, device=ids.device)
        self.source[taken] = torch.arange(len(self.rows), device=ids.device)
        self.source[half:] = torch.where(shared[half:], self.source[: count - half], self.source[half:])
        common = shared.sum(dim=1)
        other = self.rows[None, :] == (self.rows - half)[:, None]
        before = self.places[None, :] <= self.places[:, None]
        within = self.rows[None, :] == self.rows[:, None]
        self.mask = (within & before | other & (self.places[None, :] < common[self.rows][:, None]))[None, None]


def padded_on_the_right(mask: Tensor) -> bool:
    """Whether every row of a (B, T) attention mask is ones and then zeros."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.equal(mask.bool(), places < mask.sum(dim=1, keepdim=True))

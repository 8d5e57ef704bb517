"""Every token computed once: pairs one behind the other, hardly any padding, and a pair's prompt for both its answers.

A batch of pairs repeats each prompt and pads every sequence to the longest. Where the layers are all that costs, as
on a CPU, more than half of that is work that nobody needs. Results agree with those of the padded batch, but for
rounding.

Not covered, and left as they are: batches padded on the left, with keys and values from before, with positions of
their own, or longer than a sliding window; calls that ask for hidden states, a cache or a router's logits; attention
other than PyTorch's (`sdpa`), in chunks, or beside recurrent or convolutional layers; layers that do not take position
embeddings as those of Transformers' decoders do.
"""

from typing import Any

import torch
from torch import Tensor, nn

ROW = 128
"""Tokens of a packed row, if no pair is longer: attention costs by the square of it, and shorter rows pad more."""


class PackedLayers:
    """Runs the layers from `first` on over packed rows in the place of a padded batch.

    Args:
        model: a causal language model of Transformers whose decoder runs `layers` one after the other.
        first: the lowest layer that is packed; those below see the batch as it is.
        row: tokens of a packed row, if no pair is longer.
    """

    def __init__(self, model: Any, first: int, row: int = ROW) -> None:
        decoder = model.get_decoder()
        config, layers = decoder.config, decoder.layers[first:]
        other = ("use_bidirectional_attention", "attention_chunk_size", "output_router_logits", "output_hidden_states")
        self._usable = config._attn_implementation == "sdpa" and not any(getattr(config, name, None) for name in other)
        self._usable &= set(getattr(config, "layer_types", None) or []) <= {"full_attention", "sliding_attention"}
        self._usable &= not any(isinstance(part, nn.Conv1d) for part in layers.modules())  # of recurrent layers
        self._window = getattr(config, "sliding_window", None)
        self._row = row
        self._packing: Packing | None = None
        decoder.register_forward_pre_hook(self._plan, with_kwargs=True)
        self._first = layers[0]
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
        wanted = ("use_cache", "output_hidden_states", "output_router_logits", "output_attentions")
        if any(kwargs.get(name) for name in wanted):
            return
        if padded_on_the_right(mask) and ids.shape[1] <= (self._window or ids.shape[1]):
            self._packing = Packing(ids, mask.bool(), self._row)

    def _pack(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        packing = self._packing
        if packing is None or "position_embeddings" not in kwargs:
            self._packing = None
            return None
        states, *others = args
        if layer is self._first:
            states = states[packing.rows.clamp(min=0), packing.places]
        own = {"attention_mask": packing.mask, "position_ids": packing.places}
        own["position_embeddings"] = tuple(table[0, packing.places] for table in kwargs["position_embeddings"])
        return (states, *others), kwargs | own

    def _unpack(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return None if self._packing is None else output.flatten(0, 1)[self._packing.source]


class Packing:
    """How a batch is packed: a row of the second half shares its beginning with the row of the first half it is like.

    Args:
        ids: (B, T) tokens, padded on the right.
        real: (B, T), false at padding.
        row: tokens of a packed row, if no pair is longer.

    Attributes:
        rows, places: (R, N) the row and place that each packed token is taken from; at padding a row below 0, place 0.
        source: (B, T) the packed token of every place of the batch, counted row by row; the first at padding.
        mask: (R, 1, N, N), true where a token attends to another.
    """

    def __init__(self, ids: Tensor, real: Tensor, row: int) -> None:
        count = len(ids)
        half = count // 2 if count % 2 == 0 else count  # an odd batch has no pairs
        shared = torch.zeros_like(real)
        if half < count:
            shared[half:] = ((ids[:half] == ids[half:]) & real[:half] & real[half:]).cumprod(dim=1)
        rows, places = (real & ~shared).nonzero(as_tuple=True)
        order = torch.argsort(rows % half, stable=True)  # by pair
        rows, places = rows[order], places[order]
        lengths = torch.bincount(rows % half, minlength=half)
        starts, width, height = _fill(lengths.tolist(), row)
        first = lengths.cumsum(0) - lengths
        slots = torch.tensor(starts, device=ids.device)[rows % half] + torch.arange(len(rows), device=ids.device)
        slots -= first[rows % half]
        self.rows = torch.full((height * width,), -count, device=ids.device).index_copy(0, slots, rows)
        self.rows = self.rows.view(height, width)
        self.places = torch.zeros_like(self.rows).flatten().index_copy(0, slots, places).view(height, width)
        self.source = torch.zeros_like(ids).index_put((rows, places), slots)
        self.source[half:] = torch.where(shared[half:], self.source[: count - half], self.source[half:])
        common = shared.sum(dim=1)[self.rows.clamp(min=0)]
        before = self.places[:, None, :] <= self.places[:, :, None]
        within = self.rows[:, None, :] == self.rows[:, :, None]
        other = self.rows[:, None, :] == self.rows[:, :, None] - half
        in_common = self.places[:, None, :] < common[:, :, None]
        self.mask = (within & before | other & in_common)[:, None]


def _fill(lengths: list[int], row: int) -> tuple[list[int], int, int]:
    """Where each of these lengths starts in rows that are filled one by one, and the rows' length and number.

    The longest first, each into the first row that has room (first-fit decreasing).
    """
    room = max(row, *lengths)
    filled: list[int] = []
    found: dict[int, tuple[int, int]] = {}
    for pair in sorted(range(len(lengths)), key=lambda pair: -lengths[pair]):
        place = next((i for i, used in enumerate(filled) if used + lengths[pair] <= room), len(filled))
        if place == len(filled):
            filled.append(0)
        found[pair] = place, filled[place]
        filled[place] += lengths[pair]
    width = max(filled)
    return [found[pair][0] * width + found[pair][1] for pair in range(len(lengths))], width, len(filled)


def padded_on_the_right(mask: Tensor) -> bool:
    """Whether every row of a (B, T) attention mask is ones and then zeros."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.equal(mask.bool(), places < mask.sum(dim=1, keepdim=True))

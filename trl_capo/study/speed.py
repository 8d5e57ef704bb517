"""Cache what a study on a CPU would compute again and again, which changes results only by rounding.

If only the upper layers are trained, the lower ones compute the same hidden states for a sequence in every epoch and
run; so does the reference its log-probabilities. Not covered: dropout in frozen layers, and hidden states that do not
fit in memory.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


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


def sequence_keys(input_ids: Tensor, attention_mask: Tensor, *masks: Tensor) -> list[str]:
    """Return a key for each row, padded on the right, from its tokens and the sums of further masks."""
    sums = [mask.sum(dim=1).tolist() for mask in (attention_mask, *masks)]
    return [_key(ids[:length], *extra) for ids, length, *extra in zip(input_ids.tolist(), *sums, strict=True)]


def _key(tokens: list[int], *extra: int) -> str:
    return hashlib.sha256(f"{tokens} {extra}".encode()).hexdigest()


class FrozenLayers:
    """Replace the lowest `count` layers of a causal language model by their output in the cache, where it is known.

    Only packed rows (`trl_capo.core.packing`) are looked up. A forward pass raises ValueError if one of these layers,
    or the embedding, is trained.
    """

    def __init__(self, model: Any, count: int, cache: SequenceCache) -> None:
        self._count, self._cache = count, cache
        self._places: list[tuple[int, int, int, int]] = []
        self._keys: list[str] = []
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
        ids, positions = kwargs.get("input_ids"), kwargs.get("position_ids")
        self._places, self._keys = ([], []) if positions is None else packed_sequences(ids, positions)
        states = self._keys and self._cache.get(self._keys)
        self._cached = None
        if states:
            self._cached = states[0].new_zeros(*ids.shape, states[0].shape[-1], device=ids.device)
            for (row, start, stop, shared), values in zip(self._places, states, strict=True):
                self._cached[row, start:stop] = values[shared:].to(ids.device)

    def _forward(self, compute: Callable, last: bool, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._cached is not None:
            return self._cached if last else states
        output = compute(states, *args, **kwargs)
        if last and self._keys:
            found: list[Tensor] = []
            for row, start, stop, shared in self._places:
                common = [found[-1][:shared]] if shared else []
                found.append(torch.cat([*common, output[row, start:stop]]))
            self._cache.put(self._keys, found)
        return output


def packed_sequences(ids: Tensor, positions: Tensor) -> tuple[list[tuple[int, int, int, int]], list[str]]:
    """Return the sequences of `Packing`'s rows as (row, start, stop, shared tokens of the one before), and their keys.

    A sequence ends where the position does not grow by one; each token of padding counts as one.
    """
    places, keys = [], []
    for row, (tokens, position) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
        starts = [i for i, at in enumerate(position) if i == 0 or at != position[i - 1] + 1]
        sequence: list[int] = []
        for start, stop in pairwise([*starts, len(tokens)]):
            shared = position[start]
            sequence = sequence[:shared] + tokens[start:stop]
            places.append((row, start, stop, shared))
            keys.append(_key(sequence))
    return places, keys

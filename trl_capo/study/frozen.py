"""What never changes in a training, computed once: the frozen layers' output and the reference's log-probs.

Where only the upper layers are trained, the lower ones make of a sequence the same in every epoch, every run and every
evaluation, and so does the reference. Both are kept by the sequence's tokens, which makes a study on a CPU several
times cheaper. Results agree with a computation that keeps nothing, up to rounding (batched products of another shape).

Not covered: models whose frozen layers depend on more than the tokens (images, dropout in frozen layers), padding on
the left, and data sets whose hidden states do not fit into memory.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trl_capo.study.packed import padded_on_the_right


class SequenceMemory:
    """Tensors by a sequence of tokens, kept in a file between processes.

    Args:
        path: a .safetensors file, read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, Tensor] = load_file(path) if path.is_file() else {}
        self._grown = False

    def get(self, keys: list[str]) -> list[Tensor] | None:
        """The tensors of all keys, or None if one is unknown."""
        found = [self._tensors.get(key) for key in keys]
        return None if any(tensor is None for tensor in found) else found

    def put(self, key: str, tensor: Tensor) -> None:
        self._tensors[key] = tensor.detach().cpu().clone()
        self._grown = True

    def save(self) -> None:
        """Write the file if there is something new. The last of several processes to write wins."""
        if not self._grown:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        save_file(self._tensors, unfinished)
        os.replace(unfinished, self.path)
        self._grown = False


def sequence_keys(input_ids: Tensor, attention_mask: Tensor, *marks: Tensor) -> list[str] | None:
    """A key for every row's tokens, with the sums of further masks; None if a row is not padded on the right."""
    if not padded_on_the_right(attention_mask):
        return None
    lengths = attention_mask.sum(dim=1)
    sums = [mark.sum(dim=1).tolist() for mark in marks]
    rows = zip(input_ids.tolist(), lengths.tolist(), *sums, strict=True)
    texts = [f"{ids[:length]} {extra}" for ids, length, *extra in rows]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


class FrozenLayers:
    """Keeps what the lowest `count` layers of a model make of each sequence, and puts it in their place.

    A batch in which a sequence is new is computed as ever, and kept. Refused: what is trained among these layers or
    below them, whose output changes.

    Args:
        model: a causal language model of Transformers whose decoder runs `layers` one after the other.
        count: how many of the lowest layers never change.
        memory: where their output is kept.
    """

    def __init__(self, model: Any, count: int, memory: SequenceMemory) -> None:
        self._memory, self._count = memory, count
        self._keys: list[str] | None = None
        self._lengths: list[int] = []
        self._known: Tensor | None = None
        decoder = model.get_decoder()
        if not 0 < count < len(decoder.layers):
            raise ValueError(f"{count} frozen layers: the model has {len(decoder.layers)}, and the last is trained")
        decoder.register_forward_pre_hook(self._look_up, with_kwargs=True)
        for index in range(count):
            decoder.layers[index] = _KeptLayer(decoder.layers[index], self, last=index == count - 1)

    def _look_up(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kept = [decoder.get_input_embeddings(), *decoder.layers[: self._count]]
        if any(parameter.requires_grad for part in kept for parameter in part.parameters()):
            raise ValueError(
                f"the lowest {self._count} layers are remembered, and some of them, or the embeddings, are trained. "
                "Let LoRA's layers_to_transform name only layers above them, or set remember_frozen_layers=False."
            )
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        self._keys = self._known = None
        if ids is None or mask is None:
            return
        self._keys = sequence_keys(ids, mask)
        found = None if self._keys is None else self._memory.get(self._keys)
        if found is None:
            self._lengths = mask.sum(dim=1).tolist()
            return
        known = torch.zeros(*ids.shape, found[0].shape[-1], dtype=found[0].dtype)
        for row, tensor in zip(known, found, strict=True):
            row[: len(tensor)] = tensor
        self._known = known.to(ids.device)

    def run(self, layer: nn.Module, last: bool, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._known is not None:
            return self._known if last else hidden_states
        if any(parameter.requires_grad for parameter in layer.parameters()):
            raise ValueError(
                "a layer that is remembered is trained: let layers_to_transform name only layers above it"
            )
        output = layer(hidden_states, *args, **kwargs)
        if last and self._keys is not None:
            for key, length, row in zip(self._keys, self._lengths, output, strict=True):
                self._memory.put(key, row[:length])
        return output


class _KeptLayer(nn.Module):
    """A layer that is run only for sequences whose output is not known."""

    def __init__(self, layer: nn.Module, frozen: FrozenLayers, last: bool) -> None:
        super().__init__()
        self.layer, self.last = layer, last
        self._run = frozen.run

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._run(self.layer, self.last, hidden_states, *args, **kwargs)


@contextlib.contextmanager
def scoring_completions_only() -> Iterator[None]:
    """Within it, TRL's fused head scores only the completions' tokens on a CPU too, not prompts and padding.

    TRL 1.16 does so where Triton runs; elsewhere it scores every position, to spare compilers new shapes. A CPU does
    not compile, and the tokens' log-probs are the same.
    """
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda device: torch.device(device).type == "cpu" or before(device)
    try:
        yield
    finally:
        utils._use_triton = before

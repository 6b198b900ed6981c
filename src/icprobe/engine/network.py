"""A causal LM as the engines use it: packed rows of many token sequences go through it as one.

The row goes through any transformers model whose attention is pluggable: linear layers, norms and embeddings see one
long sequence, `segment_attention` sees the tree. Other models take padded batches (`Capabilities.packs` is False).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from icprobe.engine.attention import NAME
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.execution import Execution, Packed, Padded, Way
from icprobe.engine.matmul import onednn_forwards, use_forwards
from icprobe.engine.models import linear_layers
from icprobe.engine.rows import PrefixCache, Row
from icprobe.errors import ModelError, reason

logger = logging.getLogger(__name__)

# How far FlexAttention's states may lie from a dense mask's, relative to their norm, in bfloat16 and TF32, too.
FLEX_ROUNDING = 3e-2


class Network:
    """A causal LM as the engines use it: final hidden states of packed or padded rows, and the LM head apart.

    model: in evaluation mode, parameters frozen. It computes otherwise only while a row goes through it, and is as it
    was before and after; by one thread at a time. capabilities: the model's own, from its manifest
    (`Capabilities.of`), or found out of a model in memory (`admission.capabilities_of`). packed_weights: for forward
    passes alone; the model's weights must not change while the network is used.
    """

    def __init__(self, model: PreTrainedModel, capabilities: Capabilities, packed_weights: bool = False) -> None:
        self.model, self.capabilities = model, capabilities
        self.device = model.device
        self.head = model.get_output_embeddings()
        self.embed = model.get_input_embeddings()
        self._forwards = onednn_forwards(linear_layers(model).values(), packed_weights)
        self._in_use = False
        self.attention: Way = "segments"
        if not capabilities.packs:
            logger.info("%s: its sequences are padded, not packed", type(model).__name__)
        elif self.device.type == "cuda":
            self.attention = self._way_on_cuda()

    def hidden(self, row: Row) -> Tensor:
        """Final hidden states [S, d] of a row, differentiable with respect to the layers' inputs."""
        return self.run(row)[1]

    def run(self, row: Row, caches: bool = False) -> tuple[Execution, Tensor]:
        """A row's way through the model, and its final hidden states [S, d]. caches: its keys and values are kept."""
        packs = self.capabilities.packs
        execution = Packed(row, self.attention, self.device, caches) if packs else Padded(row, self.device)
        with self.in_use(), execution.under_way():
            states = self.model.base_model(**execution.arguments(self._embedded), use_cache=False).last_hidden_state
        return execution, execution.of_row(states)

    @torch.no_grad()
    def cache_prefix(self, ids: Sequence[int]) -> PrefixCache | None:
        """The beginning of all sequences of later rows, computed once; None where the model cannot be packed."""
        if not ids or not self.capabilities.packs:
            return None
        row = Row()
        row.add(ids)
        return self.run(row, caches=True)[0].prefix_cache()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the model attends and multiplies as the engines want it; after it as before, come what may.

        Raises ModelError where it cannot. Within one block others cost nothing.
        """
        if self._in_use:
            yield
            return
        name, before = type(self.model).__name__, self.model.config._attn_implementation
        if before == NAME and not self.capabilities.packs:
            raise ModelError(f"{name}: a packed row of another Network is on its way through it; let that end first.")
        try:
            self._in_use = True
            if self.capabilities.packs:
                self.model.set_attn_implementation(NAME)
                # transformers leaves a model whose attention is its own as it was.
                if self.model.config._attn_implementation != NAME:
                    raise ModelError(
                        f"{name}: its attention cannot be replaced, whatever its capabilities say; they are another "
                        "model's, or of another version of transformers."
                    )
            with use_forwards(self._forwards):
                yield
        finally:
            self._in_use = False
            if self.model.config._attn_implementation != before:
                self.model.set_attn_implementation(before)

    def _embedded(self, ids: Tensor) -> Tensor:
        # Parameters are frozen; gradients flow from here on, to the linear layers' hooks.
        embedded = self.embed(ids)
        return embedded.requires_grad_() if torch.is_grad_enabled() else embedded

    @torch.no_grad()
    def _way_on_cuda(self) -> Way:
        """FlexAttention where it compiles for this device and these heads and gives what a dense mask gives."""
        row = Row()
        root = row.add([5, 6, 7])
        row.add([8, 9], root), row.add([7, 5, 6], root)
        self.attention = "mask"
        right = self.hidden(row)
        try:
            self.attention = "flex"
            apart = (self.hidden(row) - right).float().norm()
            said = "" if apart <= FLEX_ROUNDING * right.float().norm() else "the two differ"
        except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            said = reason(error)
        way = "mask" if said else "flex"
        logger.info(
            "%s: its rows are packed by %s",
            type(self.model).__name__,
            f"a dense mask ({said})" if said else "FlexAttention",
        )
        return way

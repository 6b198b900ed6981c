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
from icprobe.engine.head import Shape, final_states
from icprobe.engine.matmul import onednn_forwards, use_forwards
from icprobe.engine.models import linear_layers
from icprobe.engine.rows import PrefixCache, Row
from icprobe.errors import ModelError, out_of_memory, reason

logger = logging.getLogger(__name__)

# How far FlexAttention's states may lie from a dense mask's, relative to their norm, in bfloat16 and TF32, too.
FLEX_ROUNDING = 3e-2


class Network:
    """A causal LM as the engines use it: final hidden states of packed or padded rows, and the LM head apart.

    model: in evaluation mode, parameters frozen. It computes otherwise only while a row goes through it, and is as it
    was before and after; by one thread at a time. capabilities: the model's own, from its manifest
    (`Capabilities.of`), or found out of a model in memory (`admission.capabilities_of`). forward_only: no gradients
    will be asked for, and the model's weights will not change while the network is used; that makes it faster.
    """

    def __init__(self, model: PreTrainedModel, capabilities: Capabilities, forward_only: bool = False) -> None:
        self.model, self.capabilities = model, capabilities
        self.device = model.device
        self.head = model.get_output_embeddings()
        self.logit_shape = Shape(capabilities.logit_scale, capabilities.logit_cap)
        self.embed = model.get_input_embeddings()
        self._forwards = onednn_forwards(linear_layers(model).values(), forward_only)
        self._in_use, self._forward_only = False, forward_only
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
            states = final_states(self.model, **execution.arguments(self._embedded), **self._beside(execution.ids))
        return execution, execution.of_row(states)

    @torch.no_grad()
    def cache_prefix(self, ids: Sequence[int], base: PrefixCache | None = None) -> PrefixCache | None:
        """The beginning of all sequences of later rows, computed once; base: what it stands behind itself.

        None where the model cannot be packed, and where a row takes one attention call (on CUDA): to put a row's keys
        behind others copies them all in every layer, which takes longer than to compute a beginning again.
        """
        if not ids or not self.capabilities.packs or self.attention != "segments":
            return None
        row = Row(base)
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
        # Parameters are frozen; gradients flow from here on, to the linear layers' hooks. Some models change the copy.
        embedded = self.embed(ids)
        return embedded.requires_grad_().clone() if torch.is_grad_enabled() else embedded

    def _beside(self, ids: Tensor) -> dict[str, Tensor]:
        """What a model with embeddings for each of its layers reads of the ids, too (Gemma 4).

        By embeddings alone it would look for their ids in the whole vocabulary, in [S, vocabulary, d] of memory.
        """
        lookup = getattr(self.model.base_model, "get_per_layer_inputs", None)
        if lookup is None or not getattr(self.model.config, "hidden_size_per_layer_input", 0):
            return {}
        return {"per_layer_inputs": lookup(ids)}

    def _way_on_cuda(self) -> Way:
        """FlexAttention where it compiles for this device and these heads and gives what a dense mask gives."""
        self.attention = "mask"
        right = self._tried()
        try:
            self.attention = "flex"
            apart = [(found - exact).norm() / exact.norm() for found, exact in zip(self._tried(), right, strict=True)]
            said = "" if max(apart) <= FLEX_ROUNDING else "the two differ"
        except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            if out_of_memory(error):  # a dense mask takes more
                raise
            said = reason(error)
        way = "mask" if said else "flex"
        logger.info(
            "%s: its rows are packed by %s",
            type(self.model).__name__,
            f"a dense mask ({said})" if said else "FlexAttention",
        )
        return way

    def _tried(self) -> list[Tensor]:
        """What attention gives on a small row: its states and, where gradients will be wanted, those of the inputs."""
        row, inputs = Row(), []
        root = row.add([5, 6, 7])
        row.add([8, 9], root), row.add([7, 5, 6], root)
        handle = self.embed.register_forward_hook(lambda _module, _args, output: inputs.append(output))
        try:
            with torch.set_grad_enabled(not self._forward_only):
                states = self.hidden(row).float()
                if self._forward_only:
                    return [states]
                along = states @ torch.linspace(-1, 1, states.shape[1], device=states.device)
                return [states.detach(), torch.autograd.grad(along.sum(), inputs[0])[0].float()]
        finally:
            handle.remove()

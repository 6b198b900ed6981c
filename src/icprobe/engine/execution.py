"""A causal LM as the engines use it: packed rows of many token sequences go through it as one.

The row goes through any transformers model whose attention is pluggable: linear layers, norms and embeddings see one
long sequence, `segment_attention` sees the tree. Other models take padded batches (`Network.packs` is False).
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from icprobe.engine.attention import NAME, attention_context, visible_blocks
from icprobe.engine.matmul import use_onednn_matmul
from icprobe.engine.models import linear_layers
from icprobe.engine.rows import PrefixCache, Row
from icprobe.errors import ModelError

logger = logging.getLogger(__name__)

# How far two exact ways to the same states may lie apart, relative to their norm; a wrong way is off by all of it.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class Network:
    """A causal LM as the engines use it: final hidden states of packed or padded rows, and the LM head apart.

    model: in evaluation mode, parameters frozen. `packs` says whether packed rows give what separate sequences give
    (tried out once, on a few tokens); if not, `hidden` works through padded batches instead and the log says so.
    packed_weights: for forward passes alone; the model's weights must not change while the network is used.
    """

    def __init__(self, model: PreTrainedModel, packed_weights: bool = False) -> None:
        self.model = model
        self.device = model.device
        self.head = model.get_output_embeddings()
        self.embed = model.get_input_embeddings()
        if self.packs_now():
            model.set_attn_implementation("sdpa")  # a model that another Network has used
        use_onednn_matmul(linear_layers(model).values(), packed_weights)
        self._try_head()
        # Where the row's tokens lie in the batch that the model sees (flattened); None where the batch is the row.
        self.places: Tensor | None = None
        # How attention goes through a packed row: segment by segment, or at once by FlexAttention or a dense mask.
        ways = ("blocks", "mask") if self.device.type == "cuda" else ("segments",)
        self.packs = any(self._try_packing(way) for way in ways)
        if not self.packs:
            logger.info("%s: its sequences are padded, not packed", type(model).__name__)

    @torch.no_grad()
    def _try_head(self) -> None:
        ids = torch.tensor([[5, 6, 7, 8]], device=self.device)
        whole = self.model(input_ids=ids, use_cache=False).logits
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if self.head is None or not torch.allclose(self.head(states), whole, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{type(self.model).__name__}: its logits are not its output embedding of its last hidden state; "
                "such a model is not supported."
            )

    @torch.no_grad()
    def _try_packing(self, way: str) -> bool:
        self.attention = way
        name = type(self.model).__name__
        before = self.model.config._attn_implementation
        a, b, c = [5, 6, 7], [8, 9], [7, 5, 6]
        separate = [self._padded([a + b])[0], self._padded([a + c])[0]]
        try:
            self.model.set_attn_implementation(NAME)
            if not self.packs_now():  # transformers leaves a model whose attention is its own as it was
                raise NotImplementedError("its attention cannot be replaced")
            row = Row()
            root = row.add(a)
            row.add(b, root), row.add(c, root)
            packed = self.hidden(row)
            right = torch.cat([separate[0], separate[1][3:]]).float()
            # By the norm: two exact kernels of bfloat16 differ by a rounding, more than 1% of some elements.
            same = (packed.float() - right).norm() <= ROUNDING[self.model.dtype] * right.norm()
            # What few tokens do not show: segment attention sees all that comes before, however far away.
            config = self.model.config
            kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
            if same and not kinds and not getattr(config, "sliding_window", None):
                return True
            reason = "its attention has a window" if same else "packed and separate sequences differ"
        except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
        self.model.set_attn_implementation(before)
        logger.info("%s: its sequences cannot be packed by %s (%s)", name, way, reason)
        return False

    @torch.no_grad()
    def cache_prefix(self, ids: Sequence[int]) -> PrefixCache | None:
        """The beginning of all sequences of later rows, computed once; None where the model cannot be packed."""
        if not ids or not self.packs_now():
            return None
        row = Row(seen={})
        row.add(ids)
        self.hidden(row)
        layers = sorted(row.seen)
        return PrefixCache(tuple(ids), [row.seen[n][0] for n in layers], [row.seen[n][1] for n in layers])

    def hidden(self, row: Row) -> Tensor:
        """Final hidden states [S, d] of a packed row, differentiable with respect to the layers' inputs."""
        if not self.packs_now():
            return self._unpacked(row)
        device = self.device
        ids = torch.tensor([row.ids], device=device)
        positions = torch.tensor([row.positions()], device=device)
        if self.attention == "blocks":
            row.visible = visible_blocks(row, device)
        elif self.attention == "mask":
            row.visible = row.mask(device)[None, None]
        with attention_context(row):
            states = self.model.base_model(
                inputs_embeds=self._embedded(ids), position_ids=positions, use_cache=False
            ).last_hidden_state
        return states[0]

    def packs_now(self) -> bool:
        """Whether the model at this moment runs with segment attention."""
        return self.model.config._attn_implementation == NAME

    def _embedded(self, ids: Tensor) -> Tensor:
        # Parameters are frozen; gradients flow from here on, to the linear layers' hooks.
        embedded = self.embed(ids)
        return embedded.requires_grad_() if torch.is_grad_enabled() else embedded

    def _unpacked(self, row: Row) -> Tensor:
        """The same states as a packed row's, from a right-padded batch with one sequence for each segment."""
        sequences = []
        for s in row.segments:
            spans = [row.segments[a] for a in s.ancestors]
            sequences.append([t for span in (*spans, s) for t in row.ids[span.start : span.end]])
        states = self._padded(sequences)
        longest = max(map(len, sequences))
        self.places = torch.tensor(
            [
                number * longest + i
                for number, (s, sequence) in enumerate(zip(row.segments, sequences, strict=True))
                for i in range(s.position, len(sequence))
            ],
            device=self.device,
        )
        return torch.cat([h[s.position :] for h, s in zip(states, row.segments, strict=True)])

    def _padded(self, sequences: list[list[int]]) -> list[Tensor]:
        longest = max(map(len, sequences))
        ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences], device=self.device)
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=self.device)
        states = self.model.base_model(
            inputs_embeds=self._embedded(ids), attention_mask=mask, use_cache=False
        ).last_hidden_state
        return [h[: len(s)] for h, s in zip(states, sequences, strict=True)]

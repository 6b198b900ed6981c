"""The examples as sequences of tokens, with the loss whose gradient the methods by gradients take."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from icprobe.attribution.matrix import Inputs
from icprobe.attribution.objective import Objective
from icprobe.engine.models import max_positions
from icprobe.texts.completions import check_trainable, completions, longest
from icprobe.texts.control_tokens import token_ids
from icprobe.texts.prompts import Encoded

logger = logging.getLogger(__name__)


def encode_documents(
    inputs: Inputs, batches: Sequence[Sequence[int]], objective: Objective | None = None
) -> dict[int, Encoded]:
    """Tokenises the examples of the rows in these batches, by row, with the loss that the objective says.

    Raises DataError for an example without a loss: its query alone is as long as fine-tuning lets an example be.
    """
    objective = objective or Objective()
    rows, mean = np.concatenate(batches).tolist(), objective.reduction == "mean"
    examples = inputs.examples(rows)
    if objective.train_loss == "document":
        prompts = inputs.prompts.of(inputs.tokenizer)
        ids = token_ids(inputs.tokenizer, [prompts.document(example) for example in examples])
        return {row: Encoded(tuple(of_row), 1, mean) for row, of_row in zip(rows, ids, strict=True)}
    length = longest(objective.max_length, max_positions(inputs.model.config))
    check_trainable(inputs.lengths.iloc[rows], length)
    encoded, counts = completions(inputs.tokenizer, examples, inputs.prompts, length)
    if counts["truncated"]:
        logger.info(
            "%d of %d examples are cut off at %d tokens, as in training", counts["truncated"], len(rows), length
        )
    return {row: replace(one, mean=mean) for row, one in zip(rows, encoded, strict=True)}

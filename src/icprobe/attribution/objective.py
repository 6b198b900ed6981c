"""The objective: whose gradients and likelihoods the methods take, and whether fine-tuning here minimises the same."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Objective:
    """The loss L_z of an example, of which g_z is the gradient, and the likelihood of a task's answer.

    train_loss: document takes all tokens of query and response after the first, as arXiv 2407.12259 does; response
    those of the response and of the end of sequence, as fine-tuning does (`texts.completions`). max_length: tokens
    after which fine-tuning cuts, for response; None: where the context ends. reduction: L_z is the sum over
    these tokens, or their mean. task_likelihood: the log-likelihood is the sum over the answer's tokens, or their mean.
    parameters: the linear layers that gradients are taken over (`engine.parameters.chosen`).
    """

    train_loss: str = "document"
    reduction: str = "sum"
    task_likelihood: str = "sum"
    max_length: int | None = None
    parameters: str = "all"


def said(settings: Mapping[str, Any], chat: bool = False) -> list[str]:
    """Says the objective in sentences, as far as these settings of the section `attribution` hold it.

    chat: whether a chat template makes the texts, so that a conversation's loss is over several turns.
    """
    names = {field.name for field in fields(Objective)}
    objective = Objective(**{name: value for name, value in settings.items() if name in names})
    sentences = _of_examples(objective, chat) if "train_loss" in settings else []
    if "task_likelihood" in settings:
        per_token = objective.task_likelihood == "mean"
        how = "divided by the number of these tokens, in nats per token" if per_token else "in nats"
        sentences.append(
            f"The log-likelihood of a task (task_likelihood: {objective.task_likelihood}) is summed over the tokens of "
            f"its {'last answer, with the end of its turn' if chat else 'answer'}, {how}."
        )
    if objective.parameters != "all":
        known = {"attention": "of attention", "mlp": "of the MLPs, with a mixture's experts"}
        which = known.get(objective.parameters, "whose names match this pattern")
        sentences.append(
            f"Gradients are taken over the linear layers {which} alone (parameters: {objective.parameters})."
        )
    return sentences


def _of_examples(objective: Objective, chat: bool) -> list[str]:
    """Says the loss of an example, and what fine-tuning minimises instead, where it does."""
    response, mean = objective.train_loss == "response", objective.reduction == "mean"
    answers = "all turns of the assistant" if chat else "its response and the end of sequence"
    if response:
        cut = f", cut off as fine-tuning does, after {objective.max_length} tokens" if objective.max_length else ""
        tokens = f"{answers}, with {'all else' if chat else 'the query'} masked{cut}"
    else:
        template = "what the template adds, such as a system message of its own, included"
        of = f"of the whole conversation, {template}" if chat else "of query and response"
        tokens = f"all its tokens after the first, {of}{'' if mean or chat else ', as in the paper'}"
    loss = (
        f"The loss of an example, whose gradient is taken (train_loss: {objective.train_loss}, reduction: "
        f"{objective.reduction}), is the {objective.reduction} over {tokens}."
    )
    learnt = answers.removeprefix("all ") if chat else "response and end of sequence"
    trained = f"the mean over all tokens of {learnt} in the examples of an optimiser step"
    if not response:
        masked = "all else" if chat else "the queries"
        return [loss, f"Fine-tuning minimises another loss: {trained}, with {masked} masked."]
    if mean:
        return [
            loss,
            f"Fine-tuning minimises it where a step holds one example; of several it minimises {trained}, where a "
            "longer response weighs more than it does here.",
        ]
    return [
        loss,
        f"Fine-tuning minimises {trained}: this sum, up to one factor for the step, is an example's part in it.",
    ]

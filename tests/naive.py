"""The definitions, one pair at a time, in plain transformers and autograd: what every fast engine is held against."""

import copy
import math
import re

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def log_likelihood(model, tokenizer, context, target):
    whole = tokenizer(context + target, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return sum(log_p[i - 1, whole[i]].item() for i in range(start, len(whole)))


def flat(text):
    return " ".join((text or "").split())


def query(row):
    middle = f" Input: {flat(row['input'])}" if flat(row["input"]) else ""
    return f"Instruction: {flat(row['instruction'])}{middle} Response:"


def target(row):
    return " " + flat(row["output"])


def icp(model, tokenizer, example, task):
    document = query(example) + target(example)
    context = "These examples may be helpful to answer the question\n" + "\n\n" + document + "\n\n" + query(task)
    return log_likelihood(model, tokenizer, context, target(task)) - log_likelihood(
        model, tokenizer, query(task), target(task)
    )


def block_parameters(model):
    """Those of linear layers, and of a mixture's experts, which transformers keeps together."""
    names = []
    for name, module in model.named_modules():
        inside = any(part in name for part in (".layers.", ".h."))
        if (isinstance(module, nn.Linear | Conv1D) or name.endswith(".experts")) and inside:
            names += [f"{name}.{n}" for n, _ in module.named_parameters()]
    return names


def gradient(model, tokenizer, row, whole_document, end=False, mean=False):
    """{parameter name: gradient} of −Σ log p: over the document's tokens after the first, or the target's.

    end: the end of sequence follows. mean: of the mean over these tokens.
    """
    model = copy.deepcopy(model).requires_grad_(True)
    model.set_attn_implementation("eager")
    context = "" if whole_document else query(row)
    ids = tokenizer(query(row) + target(row), add_special_tokens=False)["input_ids"]
    ids += [tokenizer.eos_token_id] if end else []
    start = 1 if whole_document else len(tokenizer(context, add_special_tokens=False)["input_ids"])
    log_p = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    loss = -sum(log_p[i - 1, ids[i]] for i in range(start, len(ids)))
    (loss / (len(ids) - start) if mean else loss).backward()
    parameters = dict(model.named_parameters())
    grads = {n: torch.zeros_like(p) if (p := parameters[n]).grad is None else p.grad for n in block_parameters(model)}
    experts = {name for name in grads if ".experts." in name}  # each expert's own is a tensor of its own
    return {name: g for name, g in grads.items() if name not in experts} | {
        f"{name}.{number}": g for name in experts for number, g in enumerate(grads[name])
    }


def influence(g_z, g_t):
    return sum((g_z[name].double() * g_t[name].double()).sum().item() for name in g_z)


def clamp(g):
    return torch.sign(g) * torch.minimum(torch.maximum(g.abs(), torch.tensor(1e-4)), torch.tensor(1.0))


def signed_log_terms(g_z, g_t):
    """(d_p, Σ of absolute terms of d_p) for every parameter tensor."""
    terms = []
    for name in g_z:
        products = clamp(g_z[name]).double() * clamp(g_t[name]).double()
        terms.append((products.sum().item(), products.abs().sum().item()))
    return terms


def influence_log(g_z, g_t):
    return sum(math.copysign(1, d) * math.log(abs(d)) for d, _ in signed_log_terms(g_z, g_t) if d)


def example_gradient(model, tokenizer, example, train_loss, reduction):
    response = train_loss == "response"
    return gradient(model, tokenizer, example, not response, end=response, mean=reduction == "mean")


def n_target(tokenizer, row):
    whole, context = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query(row) + target(row), query(row))
    )
    return len(whole) - len(context)


def one_step(model, tokenizer, example, task, learning_rate, train_loss="document", reduction="sum", pattern=""):
    """pattern: of the names of the parameters that are updated."""
    g_z = example_gradient(model, tokenizer, example, train_loss, reduction)
    g_z = {name: g for name, g in g_z.items() if re.search(pattern, name)}
    stepped = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in stepped.named_parameters():
            if name in g_z:
                parameter -= learning_rate * g_z[name]
            for number, expert in enumerate(parameter if f"{name}.0" in g_z else ()):
                expert -= learning_rate * g_z[f"{name}.{number}"]
    return log_likelihood(stepped, tokenizer, query(task), target(task)) - log_likelihood(
        model, tokenizer, query(task), target(task)
    )


def documents(rows):
    return "\n\n".join(query(row) + target(row) for row in rows)


def behind(rows, row):
    """What stands before a row's answer, with others in the context."""
    if not rows:
        return query(row)
    return "These examples may be helpful to answer the question\n" + "\n\n" + documents(rows) + "\n\n" + query(row)


def few_shot(model, tokenizer, rows, row):
    return log_likelihood(model, tokenizer, behind(rows, row), target(row))

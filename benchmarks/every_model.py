"""Every causal type of the installed transformers, built small: is what icprobe computes right, or is it refused?

    python -m benchmarks.every_model [TYPE…]

writes the table of docs/models.md (without types: anew). A type's numbers are held against a naive loop: one sequence
at a time, through transformers' own code, and autograd over every weight matrix of the blocks.
"""

import argparse
import copy
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from icprobe import artifacts
from icprobe.attribution import icp, influence
from icprobe.attribution.matrix import Inputs
from icprobe.config.templates import Templates
from icprobe.config.training import Finetune, Lora
from icprobe.engine.admission import admit
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.engine.experts import unstack
from icprobe.engine.models import linear_layers, load_model, max_positions
from icprobe.engine.random_models import random_model
from icprobe.errors import ModelError, reason
from icprobe.evaluation.generation import responses
from icprobe.texts.prompts import Prompts, encode
from icprobe.texts.tokenizing import train_tokenizer
from icprobe.training.fine_tune import fine_tune

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- every model: begin -->\n", "<!-- every model: end -->\n"
TYPES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# Of float32 and of 16 bits, relative to the largest number, or to a nat; and how many times as far as plain
# transformers may be in 16 bits.
TOLERANCE, MORE, TIMES_AS_FAR = 1e-4, 0.05, 3.0
# In 16 bits a rounding may send a token to another expert, of a small random model as of a large one.
MORE_BY_ROUTING = 0.5

TRAIN = [
    {"id": "a", "instruction": "Name a river.", "input": "", "output": "The Drava flows to the sea."},
    {"id": "b", "instruction": "Add the numbers.", "input": "12 and 34", "output": "46"},
    {"id": "c", "instruction": "What is ice made of?", "input": "", "output": "Ice is made of water that is cold."},
]
TASKS = [
    {"id": "t", "instruction": "Name a sea.", "input": "", "output": "The Adriatic is a sea."},
    {"id": "u", "instruction": "Add 1 and 2.", "input": "", "output": "3"},
]


Matrices = dict[str, np.ndarray]  # method -> [examples, tasks]


@dataclass(frozen=True)
class Verdict:
    """What became of a type: a row of the table. said: the sentence of the refusal, or what is to be known of it."""

    kind: str
    right: bool
    rows: str = ""  # packed or padded
    share: float = 0.0  # of the blocks' weights that lie in θ
    training: str = ""
    generation: str = ""
    said: str = ""

    def line(self) -> str:
        """The row in Markdown."""
        cells = [f"`{self.kind}`", "right" if self.right else "refused", self.rows]
        cells += [f"{100 * self.share:.1f}%" if self.right else "", self.training, self.generation, self.said]
        return f"| {' | '.join(cells)} |"


class Wrong(AssertionError):
    """A number that is not the naive loop's, in silence."""


def inputs_of(model: Any, tokenizer: Any, capabilities: Capabilities) -> Inputs:
    """What a method is given of these examples and tasks."""
    prompts = Prompts({**Templates().model_dump(), "special_tokens": "text"})
    train, tasks = pd.DataFrame(TRAIN), pd.DataFrame(TASKS)
    encoded = [encode(tokenizer, prompts.query(r), prompts.target(r)) for r in TRAIN]
    lengths = pd.DataFrame(
        {"id": train["id"], "n_query": [e.n_context for e in encoded], "n_target": [e.n_target for e in encoded]}
    )
    return Inputs(train, tasks, lengths, prompts, model, tokenizer, capabilities, seed=0)


def examine(kind: str, tokenizer: Any, folder: Path) -> Verdict:
    """Builds, prepares and tries a type. Raises Wrong where it comes out wrong in silence."""
    base = folder / "base"
    try:
        model = _loud(random_model(kind, {}, 0, tokenizer))
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        capabilities = admit(base, tokenizer)
    except ModelError as error:
        return Verdict(kind, False, said=_shortened(str(error), base))
    # As `prepare` does with a tokenizer that is what its file says.
    known = {"plain_tokenizer": True, "max_positions": max_positions(model.config), "vocabulary": len(tokenizer)}
    artifacts.write_manifest(base, **known, **asdict(capabilities))
    model = _opened(base, torch.float32)
    slow = _naive(model, inputs_of(model, tokenizer, capabilities), capabilities)
    notes = [f"without {_shares(capabilities.left_out)}"] if capabilities.left_out else []
    _compare(kind, _opened(base, torch.float32), tokenizer, capabilities, slow, dict.fromkeys(slow, TOLERANCE))
    notes += _in_bfloat16(kind, base, tokenizer, capabilities, slow)
    generation = _generation(_opened(base, torch.float32), tokenizer, capabilities)
    rows = "packed" if capabilities.packs else "padded"
    training = _training(base, folder)
    return Verdict(kind, True, rows, capabilities.attributed_share, training, generation, "; ".join(notes))


def _shortened(said: str, base: Path) -> str:
    """The sentence of a refusal, without what all have in common."""
    for common in ("model_sources: ", f"{base}: ", "such a model is not supported, choose another."):
        said = said.replace(common, "")
    return said.strip(" ;").replace("|", "\\|")


def _in_bfloat16(kind: str, base: Path, tokenizer: Any, capabilities: Capabilities, right: Matrices) -> list[str]:
    """Compares the engines in bfloat16, too; what is to be said of it."""
    if "bfloat16" in capabilities.refused_dtypes:
        return ["in float32 alone"]
    rounded = _opened(base, torch.bfloat16)
    try:
        plain = _naive(rounded, inputs_of(rounded, tokenizer, capabilities), capabilities)
    except RuntimeError as error:  # in transformers' own code, on more tokens than the trial's
        return [f"transformers fails in bfloat16 ({reason(error)})"]
    more = MORE if capabilities.expert_share == 1 else MORE_BY_ROUTING
    allowed = {method: more + TIMES_AS_FAR * _apart(plain[method], right[method], method) for method in right}
    _compare(kind, _opened(base, torch.bfloat16), tokenizer, capabilities, right, allowed)
    return []


def _training(base: Path, folder: Path) -> str:
    """How two steps of fine-tuning can change the model: by adapters, or where peft has none for it by all weights."""
    settings = {**Finetune().model_dump(), "epochs": 1, "batch_size": 2, "device": "cpu", "dtype": "float32"}
    settings |= {"learning_rate": 1e-3, "warmup_ratio": 0.0, "max_length": 256, "checkpoint_minutes": 60}
    prompts = Prompts({**Templates().model_dump(), "special_tokens": "text"})
    before, refused = load_model(base, device="cpu"), False
    for name, lora in (("adapters", Lora(rank=2).model_dump()), ("all weights", None)):
        tuned = folder / name
        try:
            fine_tune(base, TRAIN, prompts, tuned, settings | {"lora": lora}, 0, folder / f"partial {name}")
            after = load_fine_tuned(tuned, base, device="cpu")
        except ModelError:
            refused = True
            continue
        except Exception as error:  # a type that transformers cannot train
            return f"fails ({type(error).__name__})"
        layers = linear_layers(before)
        if any(not torch.equal(after.get_submodule(layer).weight, layers[layer].weight) for layer in layers):
            return name
    if refused:
        return "refused"
    raise Wrong(f"{base}: training changes nothing")


def _opened(folder: Path, dtype: torch.dtype) -> Any:
    """The saved model as transformers opens it: some types keep some weights in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def _compare(
    kind: str, model: Any, tokenizer: Any, capabilities: Capabilities, right: Matrices, allowed: dict[str, float]
) -> None:
    """Raises Wrong where the engines, with a model freshly opened, are farther from what is right than is allowed."""
    unstack(model)
    fast = _fast(inputs_of(model, tokenizer, capabilities))
    for method, limit in allowed.items():
        apart = _apart(fast[method], right[method], method)
        if not apart <= limit:
            raise Wrong(f"{kind}: {method} in {model.dtype} differs from the naive loop by {apart:.2g}")


def _apart(found: np.ndarray, right: np.ndarray, method: str) -> float:
    """The largest difference, relative to the largest number; of nats to one of them at least."""
    return np.abs(found - right).max() / max(1.0 if method == "icp" else 0.0, np.abs(right).max())


def _loud(model: Any) -> Any:
    """The model, its weights scaled so that what it predicts depends on what comes before."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (0.6 / parameter.shape[-1]) ** 0.5)
    model.tie_weights()
    return model


def _shares(left_out: dict[str, float]) -> str:
    return ", ".join(f"{name} ({100 * share:.1f}%)" for name, share in sorted(left_out.items()))


def _fast(inputs: Inputs) -> Matrices:
    """Both matrices by the engines."""
    order = [np.arange(len(inputs.train))]
    ((_, _, by_icp),) = icp.attribute(inputs, "icp", order)
    ((_, _, by_influence),) = influence.attribute(inputs, "influence", order, methods=["influence"])
    return {"icp": by_icp, "influence": by_influence}


def _naive(model: Any, inputs: Inputs, capabilities: Capabilities) -> Matrices:
    """The same, pair by pair, by transformers alone."""
    prompts, words = inputs.prompts, inputs.tokenizer
    out = {name: np.zeros((len(TRAIN), len(TASKS))) for name in ("icp", "influence")}

    def ids(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    def log_likelihood(context: str, answer: str) -> torch.Tensor:
        whole, start = ids(context + answer), len(ids(context))
        log_p = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1)
        return log_p[torch.arange(start - 1, len(whole) - 1), torch.tensor(whole[start:])].double().sum()

    theta = _theta(model, capabilities)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, theta, allow_unused=True)
        flat = [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(found, theta, strict=True)]
        return torch.cat(flat).double()

    shot = "These examples may be helpful to answer the question\n\n\n"
    with torch.no_grad():
        for i, z in enumerate(TRAIN):
            for j, t in enumerate(TASKS):
                query, answer = prompts.query(t), prompts.target(t)
                shown = f"{shot}{prompts.query(z)}{prompts.target(z)}\n\n{query}"
                out["icp"][i, j] = log_likelihood(shown, answer) - log_likelihood(query, answer)
    for p in theta:
        p.requires_grad_(True)
    of_examples = []
    for z in TRAIN:
        whole = ids(prompts.query(z) + prompts.target(z))
        log_p = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1)
        of_examples.append(gradient(-log_p[torch.arange(len(whole) - 1), torch.tensor(whole[1:])].sum()))
    of_tasks = [gradient(-log_likelihood(prompts.query(t), prompts.target(t))) for t in TASKS]
    for p in theta:
        p.requires_grad_(False)
    out["influence"] = (torch.stack(of_examples) @ torch.stack(of_tasks).T).numpy()
    return out


def _theta(model: Any, capabilities: Capabilities) -> list[nn.Parameter]:
    """Every weight and bias of linear layers and of experts in the blocks, as transformers keeps them."""
    apart = copy.deepcopy(model)
    unstack(apart)
    names = linear_layers(apart).keys() - set(capabilities.unreached)
    found = []
    for name, module in model.named_modules():
        if name in names or (hasattr(module, "is_transposed") and "down_proj" in module._parameters):
            found += list(module.parameters(recurse=False))
    return found


def _generation(model: Any, tokenizer: Any, capabilities: Capabilities) -> str:
    """Whether prompts of several lengths are answered as each alone; else they are generated singly."""
    rows = [{**t, "subset": None} for t in TASKS]
    prompts = Prompts({**Templates().model_dump(), "special_tokens": "text"})
    settings = {"max_new_tokens": 8, "device": "cpu"}
    size = 8 if capabilities.pads_left else 1
    try:
        found = [
            [row["output"] for row in responses(model, tokenizer, prompts, rows, "x", {**settings, "batch_size": n})]
            for n in (1, size)
        ]
    except Exception as error:  # a type that transformers cannot generate with
        return f"fails ({type(error).__name__})"
    if found[0] != found[1]:
        raise Wrong(f"{model.config.model_type}: a prompt's response depends on those beside it")
    return "in batches" if size > 1 else "singly"


def table(verdicts: list[Verdict]) -> str:
    """The table of docs/models.md, and how many types it has of each kind."""
    right = sum(v.right for v in verdicts)
    packed = sum(v.rows == "packed" for v in verdicts)
    head = "| type | | rows | θ | training | generation | |\n|---|---|---|---|---|---|---|\n"
    said = (
        f"transformers {transformers.__version__}: {right} of {len(verdicts)} types are right, {packed} of them in "
        f"packed rows; {len(verdicts) - right} are refused.\n\n"
    )
    return said + head + "".join(f"{v.line()}\n" for v in verdicts)


def words() -> Any:
    """A tokenizer of the texts above."""
    texts = [f"{r['instruction']} {r['input']} {r['output']}" for r in (*TRAIN, *TASKS)]
    return train_tokenizer(texts * 8, 320)


def main() -> None:
    import tempfile

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="some types: their rows are printed, and nothing is written")
    chosen = parser.parse_args().types
    tokenizer, verdicts = words(), []
    for kind in chosen or TYPES:
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append(examine(kind, tokenizer, Path(folder)))
        print(verdicts[-1].line(), flush=True)
    if not chosen:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(before + BEGIN + table(verdicts) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()

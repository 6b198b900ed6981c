"""How near `influence_ekfac` comes to kronfluence's EK-FAC: tiny models, the same rows, labels and damping.

    python -m benchmarks.ekfac

needs kronfluence (benchmarks/requirements.txt). Labels are the examples' own, since each draws others; both damp by 0.1
of a layer's mean eigenvalue; everything is in float32.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.floors import padded
from benchmarks.peers import kronfluence_task
from benchmarks.texts import ROOT
from icprobe.attribution import fisher, influence_ekfac
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, encode_tasks
from icprobe.config import Templates
from icprobe.engine.admission import capabilities_of
from icprobe.engine.random_models import random_model
from icprobe.texts.prompts import Prompts, encode
from icprobe.texts.tokenizing import train_tokenizer

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2}
ARCHITECTURES = ("llama", "gpt_neox")  # the second has biases
EXAMPLES, TASKS = 24, 6
COLUMNS = ["id", "instruction", "input", "output"]


def rows(name: str, n: int) -> pd.DataFrame:
    """The first rows of a table of the demo."""
    lines = (ROOT / f"resources/demo/{name}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    return pd.DataFrame(map(json.loads, lines))[COLUMNS]


def inputs_of(architecture: str) -> Inputs:
    """A random model, its weights scaled up so that its predictions differ, with a few rows of the demo."""
    train, tasks = rows("train", EXAMPLES), rows("tasks", TASKS)
    tokenizer = train_tokenizer([f"{r.instruction} {r.input} {r.output}" for r in train.itertuples()], 512)
    model = random_model(architecture, SIZES, 1, tokenizer).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    prompts = Prompts(Templates().model_dump())
    encoded = [encode(tokenizer, prompts.query(row), prompts.target(row)) for row in train.to_dict("records")]
    counts = {"n_query": [one.n_context for one in encoded], "n_target": [one.n_target for one in encoded]}
    lengths = pd.DataFrame({"id": train["id"], **counts})
    return Inputs(train, tasks, lengths, prompts, model, tokenizer, capabilities_of(model))


def ours(inputs: Inputs, folder: Path) -> np.ndarray:
    """The matrix by icprobe."""
    runs = [np.arange(start, start + 4) for start in range(0, EXAMPLES, 4)]
    found = fisher.fit(inputs, runs, folder, labels="empirical")
    pieces = influence_ekfac.attribute(inputs, "influence_ekfac", runs, found, damping=0.1)
    return np.concatenate([values for _, _, values in pieces])


def theirs(inputs: Inputs, folder: Path) -> np.ndarray:
    """The matrix by kronfluence, one sequence at a time, so that nothing is padded."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    documents = encode_documents(inputs, [range(EXAMPLES)])
    model, task = inputs.model.requires_grad_(True), kronfluence_task(inputs.model)
    analyzer = Analyzer(
        "agreement", prepare_model(model, task), task, cpu=True, output_dir=str(folder), disable_tqdm=True
    )
    loader = DataLoaderKwargs(collate_fn=lambda batch: padded(batch, torch.device("cpu")))
    shared = {"dataloader_kwargs": loader, "overwrite_output_dir": True}
    examples = [documents[row] for row in range(EXAMPLES)]
    analyzer.fit_all_factors(
        "ekfac",
        dataset=examples,
        per_device_batch_size=1,
        factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        **shared,
    )
    analyzer.compute_pairwise_scores(
        "scores",
        "ekfac",
        query_dataset=encode_tasks(inputs),
        train_dataset=examples,
        per_device_query_batch_size=1,
        per_device_train_batch_size=1,
        score_args=ScoreArguments(damping_factor=None),  # 0.1 of a layer's mean
        **shared,
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy().T


def main() -> None:
    """Prints, of each architecture, the correlation over all pairs, and the largest difference by the largest entry."""
    for architecture in ARCHITECTURES:
        inputs = inputs_of(architecture)
        with tempfile.TemporaryDirectory() as folder:
            fast = ours(inputs, Path(folder, "ours"))
            peer = theirs(inputs, Path(folder, "theirs"))
        correlation = np.corrcoef(fast.ravel(), peer.ravel())[0, 1]
        difference = np.abs(fast - peer).max() / np.abs(peer).max()
        print(f"{architecture}: Pearson {correlation:.6f}, largest difference {difference:.1e} of the largest entry")


if __name__ == "__main__":
    main()

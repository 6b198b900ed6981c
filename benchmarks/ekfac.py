"""How near `influence_ekfac` comes to the peers' EK-FAC, and what each costs: the same rows, labels and damping.

    python -m benchmarks.ekfac          tiny models: correlation and largest difference
    python -m benchmarks.ekfac --costs  three blocks of SmolLM2-135M's widths: processor seconds and memory, one thread

needs kronfluence, bergson and dattri-llm (`make install-bench`). Labels are the examples' own, since each draws others;
all damp by 0.1 of a layer's mean eigenvalue; everything is in float32.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import ekfac_peers
from benchmarks.texts import ROOT
from icprobe.attribution import fisher, influence, influence_ekfac
from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.config import Templates
from icprobe.engine import batching
from icprobe.engine.admission import capabilities_of
from icprobe.engine.random_models import random_model
from icprobe.texts.prompts import Prompts, encode
from icprobe.texts.tokenizing import train_tokenizer

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2}
ARCHITECTURES = ("llama", "gpt_neox")  # the second has biases
EXAMPLES, TASKS = 24, 6
# A tenth of SmolLM2-135M, in blocks and vocabulary; the whole demo.
WIDTHS = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 3,
}
WORDS, COST_EXAMPLES, COST_TASKS = 4915, 108, 12
COLUMNS = ["id", "instruction", "input", "output"]


def rows(name: str, n: int) -> pd.DataFrame:
    """The first rows of a table of the demo."""
    lines = (ROOT / f"resources/demo/{name}.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    return pd.DataFrame(map(json.loads, lines))[COLUMNS]


def inputs_of(
    architecture: str, sizes: dict = SIZES, words: int = 512, examples: int = EXAMPLES, answers: int = TASKS
) -> Inputs:
    """A random model, its weights scaled up so that its predictions differ, with a few rows of the demo."""
    train, tasks = rows("train", examples), rows("tasks", answers)
    tokenizer = train_tokenizer([f"{r.instruction} {r.input} {r.output}" for r in train.itertuples()], words)
    model = random_model(architecture, sizes, 1, tokenizer).requires_grad_(False)
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
    runs = batching.batches(inputs.lengths, 1024)
    found = fisher.fit(inputs, runs, folder, labels="empirical")
    pieces = influence_ekfac.attribute(inputs, "influence_ekfac", runs, found, damping=0.1)
    return _matrix(inputs, pieces)


def plain(inputs: Inputs, folder: Path) -> np.ndarray:
    """The matrix without curvature, by icprobe."""
    runs = batching.batches(inputs.lengths, 1024)
    return _matrix(inputs, influence.attribute(inputs, "influence", runs, methods=["influence"]))


def _matrix(inputs: Inputs, pieces: Pieces) -> np.ndarray:
    """The pieces of a matrix in the examples' order."""
    found = np.empty((len(inputs.train), len(inputs.tasks)), np.float32)
    for _, batch, values in pieces:
        found[batch] = values
    return found


Contestant = Callable[[Inputs, Path], np.ndarray]

PEERS: dict[str, Contestant] = {
    "kronfluence": ekfac_peers.kronfluence,
    "bergson": ekfac_peers.bergson,
    "dattri-llm": ekfac_peers.dattri_llm,
}
CONTESTANTS: dict[str, Contestant] = {"influence": plain, "influence_ekfac": ours, **PEERS}


def cost(name: str, file: Path) -> None:
    """Prints the processor seconds of one contestant, without loading, and what this process held at most."""
    torch.set_num_threads(1)
    inputs = inputs_of("llama", WIDTHS, WORDS, COST_EXAMPLES, COST_TASKS)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        found = CONTESTANTS[name](inputs, Path(folder))
        seconds = time.process_time() - began
    np.save(file, found)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name}: {seconds:.1f} processor seconds, {resident:.2f} GB")


def costs() -> None:
    """Each contestant in a process of its own, one after the other, and how near the peers are."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.npy") for name in CONTESTANTS}
        for name, file in files.items():
            subprocess.run([sys.executable, "-m", "benchmarks.ekfac", name, file], check=True)
        fast = np.load(files["influence_ekfac"])
        for name in PEERS:
            print(f"influence_ekfac and {name}: {compared(fast, np.load(files[name]))}")


def compared(fast: np.ndarray, peer: np.ndarray) -> str:
    """The correlation over all pairs, and the largest difference by the largest entry, in words."""
    correlation, difference = np.corrcoef(fast.ravel(), peer.ravel())[0, 1], np.abs(fast - peer).max()
    return f"Pearson {correlation:.6f}, largest difference {difference / np.abs(peer).max():.1e} of the largest entry"


def main() -> None:
    """Prints how near they are on each architecture, or what they cost."""
    if sys.argv[1:] == ["--costs"]:
        costs()
        return
    if sys.argv[1:]:
        cost(sys.argv[1], Path(sys.argv[2]))
        return
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            fast = ours(inputs_of(architecture), Path(folder, "ours"))
            for name, peer in PEERS.items():  # each takes a model of its own, for some wrap its layers
                found = peer(inputs_of(architecture), Path(folder, name))
                print(f"{architecture}, {name}: {compared(fast, found)}")


if __name__ == "__main__":
    main()

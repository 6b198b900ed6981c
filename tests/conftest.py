"""A tokenizer and tiny random models, made once per session; no network, no GPU."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# On macOS, whose libraries refuse what is forked from a process with threads, as tests fork `snakemake` and its jobs.
os.environ.setdefault("OBJC_DISABLE_INITIALIZE_FORK_SAFETY", "YES")

import copy
import functools
import json
import re
import socket
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import settings

# The same examples every time: what is found stays found.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "resources" / "demo"

SIZES = {
    "llama": {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt_neox": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4},
    "gpt2": {"hidden_size": 48, "num_attention_heads": 4, "n_positions": 1024},
}

# The files that take longest, before all others: one that began last would leave the other workers idle. The first has
# the tiny experiment run; meanwhile the next few do without it.
LONGEST = [
    *("staleness", "benchmarks", "any_method", "external_methods", "attribution", "user_errors", "synthetic_dag"),
    *("judging_dag", "report_in_browser", "masking", "plotting", "cores", "ending", "finetuning", "tracking"),
    *("syncing", "snakemake_report", "headline", "environments", "profiles", "invocations", "alpaca_eval"),
    *("differences", "from_python", "modes", "objective", "held_out", "tail_patch", "resuming", "synthetic", "jobs"),
    *("docs", "engines_dag", "engines", "combined_dag", "methods_table", "less", "modules", "ekfac", "retraining"),
]


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def demo_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def tokenizer():
    from icprobe.texts.tokenizing import train_tokenizer

    rows = demo_rows("train")
    return train_tokenizer([f"{r['instruction']} {r['input']} {r['output']}" for r in rows], 512)


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """architecture → a random model, its weights scaled up so that predictions differ from uniform."""
    from icprobe.engine.random_models import random_model

    made = {}

    def make(architecture: str):
        if architecture not in made:
            model = random_model(architecture, SIZES[architecture], 1, tokenizer)
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.data.mul_(4)
                elif architecture != "llama":
                    parameter.data.add_(0.05)  # biases are zero at first; tests must see them
            made[architecture] = model.requires_grad_(False)
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def prompts():
    from icprobe.config import Templates
    from icprobe.texts.prompts import Prompts

    return Prompts(Templates().model_dump())


@pytest.fixture(scope="session")
def few(tokenizer, prompts):
    """7 examples and 3 tasks of the demo data, of different lengths, with the examples' token counts."""
    from icprobe.texts.prompts import encode

    train = pd.DataFrame(demo_rows("train")[:7])[["id", "instruction", "input", "output"]]
    tasks = pd.DataFrame(demo_rows("tasks")[:3])[["id", "instruction", "input", "output"]]
    encoded = [encode(tokenizer, prompts.query(r), prompts.target(r)) for r in train.to_dict("records")]
    lengths = pd.DataFrame(
        {"id": train["id"], "n_query": [e.n_context for e in encoded], "n_target": [e.n_target for e in encoded]}
    )
    return train, tasks, lengths


@pytest.fixture(scope="session")
def spoken(tokenizer):
    """template → the tests' tokenizer with that template, and the control tokens that it writes."""

    from transformers import PreTrainedTokenizerFast

    def make(template):
        made = PreTrainedTokenizerFast(
            tokenizer_object=copy.deepcopy(tokenizer.backend_tokenizer),
            **dict.fromkeys(("eos_token", "bos_token", "pad_token"), tokenizer.eos_token),
        )
        found = set(re.findall(r"<\|?[\w-]+\|?>|\[/?INST\]", template)) | {"<|im_start|>", "<|im_end|>"}
        made.add_special_tokens({"additional_special_tokens": sorted(found)})
        made.chat_template = template
        return made

    return make


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def server():
    """A stand-in for W&B's server."""
    from wandb_server import Server

    stand_in = Server()
    yield stand_in
    stand_in.http.shutdown()
    stand_in.http.server_close()


@pytest.fixture
def silent_server():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(scope="session")
def capabilities(tiny_model):
    """architecture → what the engines can do with its tiny model."""
    from icprobe.engine.admission import capabilities_of

    return functools.cache(lambda architecture: capabilities_of(tiny_model(architecture)))


@pytest.fixture
def inputs(few, prompts, tokenizer, tiny_model, capabilities):
    """(architecture, dtype) → what a method is given, with a model of its own."""
    from icprobe.attribution.matrix import Inputs

    def make(architecture, dtype=None):
        train, tasks, lengths = few
        model = copy.deepcopy(tiny_model(architecture))
        model = model.to(dtype) if dtype else model
        return Inputs(train, tasks, lengths, prompts, model, tokenizer, capabilities(architecture), seed=3)

    return make


@pytest.fixture(scope="module")
def one_thread():
    """Tiny matrices: a second thread only waits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

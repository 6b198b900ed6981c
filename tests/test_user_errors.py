"""What a user gets wrong ends in one clear sentence, on the terminal and in the rule's log, without a traceback."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import dag
import pandas as pd
import pytest

from icprobe import artifacts
from icprobe.workflow.log_filters import shorten_reason

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the tiny experiment, on a machine that may be busy

# What Snakemake says before it reads the Snakefile.
GREETINGS = ("Using workflow specific profile", "Config file config.yaml is extended")
TRAIN = "results/tiny/data/train.parquet"
WITHOUT_TORCH_GB = 0.35


def said(ended: dag.Ended) -> list[str]:
    """The lines on the terminal, without the copy of the failed job's log that Snakemake shows between rulers."""
    outside = re.sub(r"^={20,}\n.*?^={20,}\n", "", ended.output, flags=re.MULTILINE | re.DOTALL)
    return [line for line in outside.splitlines() if line.strip()]


# --- the configuration, which the Snakefile reads ----------------------------------------------------------------

SCORED = ["icp", "random"]
CONFIGURATIONS = {
    "a mistyped key": ({"finetune": {"learning_rte": 1e-4}}, 'finetune.learning_rte: unknown key; did you mean "lear'),
    "a mistyped section": ({"atribution": {}}, 'atribution: unknown key; did you mean "attribution"'),
    "a wrong type": ({"finetune": {"epochs": "many"}}, "finetune.epochs: .*'many'"),
    "a number that YAML reads as text": ({"attribution": {"shards": 0}}, "attribution.shards: .*0"),
    "an experiment that is a path": ({"experiment": "../elsewhere"}, "experiment: use a plain name.*elsewhere"),
    "an experiment with a space": ({"experiment": "my runs"}, "experiment: use a plain name.*my runs"),
    "an unknown method": ({"attribution": {"methods": [*SCORED, "icq"]}, "figures": {"scatter": "all"}}, "'icq'"),
    "a model without a source": ({"models": ["tiny-lama"]}, "'tiny-lama' is not defined.*\"tiny-llama\""),
    "a method that is fine-tuned on but not scored": (
        {"attribution": {"methods": SCORED}, "finetune": {"methods": ["influence"]}, "figures": {"scatter": "all"}},
        "finetune.methods: 'influence' is not scored; add it",
    ),
    "bins without icp": (
        {"attribution": {"methods": ["random"]}, "finetune": {"methods": ["random"]}, "figures": {"scatter": "all"}},
        "bins: .*add icp",
    ),
    "bins with another aggregator of icp": (
        {"attribution": {"aggregators": {"icp": "mean"}}},
        "bins: .*icp: fraction_positive",
    ),
    "good values that no row's label has": (
        {"data": {"sound_labels": {"planted": ["sond"]}}},
        "data.sound_labels.planted: no row of data.train has 'sond'; the column 'planted' holds .*'sound'",
    ),
    "a missing train file": ({"data": {"train": {"path": "none.jsonl"}}}, "data.train.path: none.jsonl: no such file"),
    "a local model's directory that is missing": (
        {"models": ["mine"], "model_sources": {"mine": {"source": "local", "path": "nowhere"}}},
        "model_sources.mine.path: nowhere: no such directory",
    ),
    "a local model's directory without a model": (
        {"models": ["mine"], "model_sources": {"mine": {"source": "local", "path": "resources"}}},
        "model_sources.mine.path: resources: no config.json is in it",
    ),
    "a missing file of accelerate": (
        {"finetune": {"processes": 2, "accelerate": "none.yaml"}, "data": {"train": {"sample": None}}},
        "finetune.accelerate: none.yaml: no such file",
    ),
    "a missing eval file": ({"data": {"eval": {"path": "none.csv"}}}, "data.eval.path: none.csv: no such file"),
}

# --- files, which jobs read ----------------------------------------------------------------------------------------

ROW = {"id": "one", "instruction": "Say something.", "input": "", "output": "Something.", "planted": "sound"}
LONG = {**ROW, "id": "long", "output": "word " * 3000}  # the tiny model takes 2048 tokens


def train_file(*rows, **data) -> Callable:
    """Writes a train file of these rows (a text is a line as it is) and gives the configuration that names it."""

    def write(project: dag.Project) -> dict:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in (ROW, *rows)]
        (project.path / "mine.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return {"data": {"train": {"path": "mine.jsonl", "sample": None}, **data}}

    return write


def encoder(project: dag.Project) -> dict:
    from transformers import T5Config

    T5Config(d_model=16, num_layers=1, num_heads=2).save_pretrained(project.path / "t5")
    return {"models": ["t5"], "model_sources": {"t5": {"source": "local", "path": "t5"}}}


def refused_dtype(project: dag.Project) -> dict:
    """A model that has come out wrong in bfloat16, and an experiment that asks for it."""
    directory = project.path / dag.MODEL
    facts = {key: value for key, value in artifacts.read_manifest(directory).items() if key != "files"}
    wrong = {"bfloat16": "LlamaForCausalLM in bfloat16: the hidden states differ by 70%"}
    artifacts.write_manifest(directory, **facts | {"refused_dtypes": wrong})
    artifacts.show_manifest(directory, directory.with_name(f"{directory.name}.manifest.json"))
    (project.path / dag.RESULTS / "attributions/icp.parquet").unlink()
    return {"attribution": {"dtype": "bfloat16"}}


def refused_dtype_of(section: str, target: str) -> Callable[[dag.Project], dict]:
    """The same of another section, and what is made with its dtype is gone."""

    def mistake(project: dag.Project) -> dict:
        refused_dtype(project)
        made = project.path / dag.RESULTS / target
        shutil.rmtree(made) if made.is_dir() else made.unlink()
        return {section: {"dtype": "bfloat16"}}

    return mistake


def unknown_word_vector(project: dag.Project) -> None:
    """NaN in the embedding of one token: all texts with that token become NaN, and no others."""
    from safetensors.torch import load_file, save_file

    directory = project.path / "resources/models/tiny-llama"
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][nan_token(project)[0]] = float("nan")
    manifest = artifacts.read_manifest(directory)
    time = directory.stat().st_mtime
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    artifacts.write_manifest(directory, **{key: value for key, value in manifest.items() if key != "files"})
    os.utime(directory, (time, time))  # to Snakemake the model is what it was
    for path in (project.path / dag.RESULTS / "attributions").glob("icp*/*"):
        path.unlink()
    (project.path / dag.RESULTS / "attributions/icp.parquet").unlink()


def nan_token(project: dag.Project) -> tuple[int, list[str]]:
    """A token that few examples and no task hold, and the ids of these examples."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(project.path / "resources/models/tiny-llama")
    train, tasks = (pd.read_parquet(project.path / f"results/tiny/data/{name}.parquet") for name in ("train", "tasks"))

    def tokens(row) -> set[int]:
        return set(tokenizer(f"Instruction: {row.instruction} Input: {row.input} Response: {row.output}")["input_ids"])

    taken = set().union(*map(tokens, tasks.itertuples()), range(300))
    held: dict[int, list[str]] = {}
    for row in train.itertuples():
        for token in tokens(row) - taken:
            held.setdefault(token, []).append(row.id)
    return min(((token, ids) for token, ids in held.items()), key=lambda pair: (len(pair[1]), pair[0]))


def nan_score(project: dag.Project) -> None:
    path = project.path / dag.RESULTS / "attributions/influence.parquet"
    matrix = pd.read_parquet(path)
    matrix.iloc[3, 1] = float("nan")
    matrix.to_parquet(path, index=False)
    (project.path / dag.RESULTS / "scores/influence.parquet").unlink()


@dataclass(frozen=True)
class Mistake:
    """prepare: makes the mistake in a project and gives configuration; sentence: what is said of it."""

    prepare: Callable
    sentence: str
    target: str = TRAIN
    log: str = "tiny/prepare_train.log"
    before_torch: bool = True


MISTAKES = {
    "an empty output": Mistake(
        train_file({**ROW, "id": "two", "output": " "}), 'mine.jsonl, line 2: "output" is empty. .*data.on_empty: drop'
    ),
    "a duplicate id": Mistake(train_file(ROW), "mine.jsonl, line 2: the id 'one' is already used by line 1"),
    "a wrong type": Mistake(
        train_file({**ROW, "id": "two", "output": 7}), r'mine.jsonl, line 2: "output" is .*7.* \(int\), not a string'
    ),
    "a missing instruction": Mistake(
        train_file({"id": "two", "output": "Yes."}), 'mine.jsonl, line 2: "instruction" is missing'
    ),
    "broken JSON": Mistake(train_file('{"id": "two", '), "mine.jsonl, line 2: broken JSON"),
    "a row longer than the context": Mistake(
        train_file(LONG),
        r"data.train: 1 row too long .*: long; long needs \d+ tokens where tiny-llama takes 2048",
        target=f"{dag.RESULTS}/data/lengths.parquet",
        log="tiny/measure_lengths/tiny-llama.log",
        before_torch=False,
    ),
    "a model that is no causal LM": Mistake(
        encoder,
        "a t5 is no causal language model; choose one that is",
        target="resources/models/t5",
        log="models/t5-*.log",
        before_torch=False,
    ),
    "a dtype that the model cannot be used in": Mistake(
        refused_dtype,
        r"LlamaForCausalLM in bfloat16: .*; set attribution\.dtype: float32\.",
        target=f"{dag.RESULTS}/attributions/icp.parquet",
        log="tiny/check_dtype/tiny-llama.log",
    ),
    "a dtype that the model cannot be trained in": Mistake(
        refused_dtype_of("finetune", "checkpoints/icp/gt-0.80/seed-0"),
        r"LlamaForCausalLM in bfloat16: .*; set finetune\.dtype: float32\.",
        target=f"{dag.RESULTS}/checkpoints/icp/gt-0.80/seed-0",
        log="tiny/check_section_dtype/tiny-llama/finetune.log",
    ),
    "a dtype that the model cannot answer in": Mistake(
        refused_dtype_of("evaluation", "responses/base.jsonl"),
        r"LlamaForCausalLM in bfloat16: .*; set evaluation\.dtype: float32\.",
        target=f"{dag.RESULTS}/responses/base.jsonl",
        log="tiny/check_section_dtype/tiny-llama/evaluation.log",
    ),
    "a pattern that no layer's name matches": Mistake(
        lambda project: {"attribution": {"parameters": r"layers\.7\."}},
        r"attribution\.parameters: 'layers\\.7\\.': no linear layer of LlamaForCausalLM is chosen; their names are "
        r"such as model\.layers\.0\.self_attn\.q_proj and model\.layers\.\d\.mlp\.down_proj\.",
        target=f"{dag.RESULTS}/data/parameters.checked.json",
        log="tiny/check_parameters/tiny-llama.log",
        before_torch=False,
    ),
    "an example whose query leaves no room for a response in training": Mistake(
        lambda project: {"attribution": {"train_loss": "response"}, "finetune": {"max_length": 5}},
        r"train_loss: response: 24 examples without a loss: .*5 tokens or more, .*Raise finetune\.max_length",
        target=f"{dag.RESULTS}/data/losses.checked.json",
        log="tiny/check_losses/tiny-llama.log",
        before_torch=False,
    ),
    "a NaN in a matrix": Mistake(
        nan_score,
        "NaN.*{nan_row}|{nan_row}.*NaN",
        target=f"{dag.RESULTS}/scores/influence.parquet",
        log="tiny/score/tiny-llama/influence.log",
    ),
    "a NaN in a model": Mistake(
        unknown_word_vector,
        "icp: {nan_count} examples? with attributions that are NaN or infinite: {nan_ids}",
        target=f"{dag.RESULTS}/attributions/icp.parquet",
        log="tiny/attribute/tiny-llama/icp/*.log",
        before_torch=False,
    ),
}

# Rows that can be dropped or cut: (the train file and what to do with them, what the log says).
PERMITTED = {
    "drop what is too long": (
        train_file(LONG, on_too_long="drop"),
        "2 rows read, 0 empty ones dropped, 1 too long, 1 kept",
    ),
    "truncate what is too long": (
        train_file(LONG, on_too_long="truncate"),
        "2 rows read, 0 empty ones dropped, 1 too long, 2 kept",
    ),
    "drop what is empty": (
        train_file({**ROW, "id": "two", "output": ""}, on_empty="drop"),
        "2 rows read, 1 empty ones dropped, 0 too long, 1 kept",
    ),
}


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """(kind, name) → the project and how its `snakemake` ended; two at a time, each in a copy of its own."""
    base = tmp_path_factory.getbasetemp()
    asked = [item.callspec.params for item in request.session.items if "outcomes" in item.fixturenames]

    def configured(name: str) -> tuple[dag.Project, dag.Ended]:
        project = dag.new(tmp_path_factory.mktemp("configured"))
        return project, project.snakemake("all", "-n", config=CONFIGURATIONS[name][0])

    def run(prepare: Callable, target: str, alone: bool = False) -> tuple[dag.Project, dag.Ended]:
        """alone: its jobs have imports and memory of their own."""
        project = dag.finished(base).copy(tmp_path_factory.mktemp("mistaken"))
        asked, config = (target, "--cores", "1"), prepare(project) or {}
        return project, (
            project.start(*asked, config=config).wait() if alone else project.snakemake(*asked, config=config)
        )

    with ThreadPoolExecutor(2) as pool:
        started = {}
        for params in asked:
            kind, name = next(iter(params.items()))
            if kind == "configuration":
                started[kind, name] = pool.submit(configured, name)
            elif kind == "mistake":
                dag.finished(base)
                started[kind, name] = pool.submit(
                    run, MISTAKES[name].prepare, MISTAKES[name].target, MISTAKES[name].before_torch
                )
            elif kind == "permitted":
                dag.finished(base)
                started[kind, name] = pool.submit(run, PERMITTED[name][0], TRAIN)
        yield started


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_mistake_in_the_configuration_is_one_sentence_and_all_that_is_said(configuration, outcomes):
    _, ended = outcomes["configuration", configuration].result()
    assert ended.returncode == 1
    lines = [line for line in said(ended) if not line.startswith(GREETINGS)]
    assert len(lines) == 1, ended.output
    assert re.search("^config: .*" + CONFIGURATIONS[configuration][1], lines[0])


def test_a_key_twice_in_a_file_of_ones_own_is_all_that_is_said(tmp_path):
    project = dag.new(tmp_path)
    (tmp_path / "mine.yaml").write_text("experiment: mine\nseed: 1\nexperiment: tiny\n")
    ended = dag.forked(["all", "-n", "--configfile", "config.yaml", "configs/tiny.yaml", "mine.yaml"], project.path)
    lines = [line for line in said(ended) if not line.startswith(GREETINGS)]
    assert ended.returncode == 1
    assert len(lines) == 1, ended.output
    assert "mine.yaml: the key experiment appears twice, in lines 1 and 3" in lines[0]


def test_a_mistyped_target_is_told_which_it_may_be(tmp_path):
    project = dag.new(tmp_path)
    for target, hint in {"anaylsis": '; did you mean "analysis"?', "zzz": "; `snakemake --list-target-rules`"}.items():
        ended = project.snakemake("-n", target)
        assert ended.returncode == 1
        assert f"There is no target {target}{hint}" in ended.output


def test_a_reason_names_a_few_of_the_files_that_made_a_job_necessary():
    files = [f"results/m/{k}.parquet" for k in range(6)]
    said = f"Missing output files: a; Input files updated by another job: {', '.join(files)}"
    record = logging.makeLogRecord({"reason": said})
    assert shorten_reason(record)
    shown = f"Missing output files: a; Input files updated by another job: {', '.join(files[:3])} and 3 more"
    assert record.reason == shown
    assert shorten_reason(logging.makeLogRecord({"msg": "no job"}))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_one_sentence_on_the_terminal_and_in_the_log(mistake, outcomes):
    project, ended = outcomes["mistake", mistake].result()
    expected, sentence = MISTAKES[mistake], MISTAKES[mistake].sentence
    if "{" in sentence:
        ids = nan_token(project)[1]
        row = pd.read_parquet(project.path / TRAIN)["id"].iloc[3]
        sentence = sentence.format(nan_row=row, nan_count=len(ids), nan_ids=ids[0])
    assert ended.returncode == 1
    assert "Traceback" not in ended.output
    # Once where it happens, and once in the last words, which fit the terminal's width.
    happened, last_words = "\n".join(said(ended)).split("Exiting because a job execution failed")
    assert len([line for line in happened.splitlines() if re.search(sentence, line)]) == 1, ended.output
    assert re.search(sentence, " ".join(last_words.split())), ended.output
    logs = [path.read_text(encoding="utf-8") for path in (project.path / "logs").glob(expected.log)]
    log = next(text for text in logs if "error: " in text)
    assert len(re.findall("error: .*(?:" + sentence + ")", log)) == 1, log
    assert "Traceback" not in log
    if expected.before_torch:
        peak = float(re.search(r"failed after .* peak memory ([\d.]+) GB", log)[1])
        assert peak < WITHOUT_TORCH_GB, "a model's libraries were loaded before the mistake was found"
    assert not (project.path / expected.target).exists() or expected.target == TRAIN


@pytest.mark.parametrize("permitted", PERMITTED)
def test_rows_that_may_be_dropped_or_cut_are_counted_in_the_log(permitted, outcomes):
    project, ended = outcomes["permitted", permitted].result()
    assert ended.returncode == 0, ended.output
    assert PERMITTED[permitted][1] in project.log("tiny/prepare_train.log")
    rows = pd.read_parquet(project.path / TRAIN).set_index("id")
    if permitted.startswith("truncate"):
        assert 0 < len(rows["output"]["long"]) < len(LONG["output"])
        assert LONG["output"].startswith(rows["output"]["long"])
    else:
        assert list(rows.index) == ["one"]

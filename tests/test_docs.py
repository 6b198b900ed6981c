"""What the pages show works: commands are run, planned or parsed; YAML and Python blocks are what icprobe takes."""

import ast
import builtins
import copy
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import dag
import numpy as np
import pages
import pandas as pd
import pytest
import yaml
from conftest import demo_rows
from packaging.requirements import Requirement
from snakemake.utils import update_config
from test_own_data import MORE, OWN, TINY

from icprobe.attribution import METHODS
from icprobe.config import load

BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
# How each language of a block is checked; what is none of these is refused.
LANGUAGES = {"bash", "yaml", "python", "json", "jinja", "text"}
PROGRAMS = ("snakemake", "make", "python", "pip", "vllm", "grep", ".", ".ci/run")


def of(language: str) -> list[pages.Block]:
    return [block for block in BLOCKS if block.language == language]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_block_says_its_language_and_no_text_is_a_command():
    assert {block.language for block in BLOCKS} == LANGUAGES
    for block in of("text"):
        assert block.text.split()[0] not in PROGRAMS, f"{block}: write ```bash"
    for page in pages.PAGES:
        outside = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        indented = re.findall(r"(?<=\n\n)(?: {4,})(?![-\d*`]|[a-z]+ ).*", outside)
        assert not [line for line in indented if line.split()[0] in PROGRAMS], f"{page.name}: fence its commands"


# --- shell ------------------------------------------------------------------------------------------------------

SHELL = [words for block in of("bash") for words in commands(block.text)]
# In sentences: `snakemake -n truth`. What is only a name, such as `python`, is no command.
IN_SENTENCES = sorted(
    {
        " ".join(found.split())
        for page in pages.PAGES
        for found in re.findall(
            r"`((?:[A-Z_]+=\S+ )?(?:snakemake|make|python|pip) [^`]+)`", page.read_text(encoding="utf-8")
        )
    }
)
EVERY = [*SHELL, *({*map(tuple, map(shlex.split, IN_SENTENCES))})]

# Only parsed, because of what they need or how long they take. `pip` and `python` are parsed by tests of their own.
ELSEWHERE = {
    "snakemake --profile profiles/kubernetes all": "its storage: tests/test_profiles.py plans it with a folder",
    "vllm serve": "needs vLLM and a GPU; docs/responses.md says that it was not tried",
    "grep -ra": "reads W&B runs; tests/test_privacy.py searches them",
    ". .venv/bin/activate": "the environment that `make install` has made",
    ".ci/run": "runs this test",
}


def elsewhere(words) -> bool:
    return any(" ".join(words).startswith(start) for start in ELSEWHERE)


def test_every_command_is_of_a_kind_that_is_checked():
    for words in SHELL:
        assert words[0] in ("snakemake", "make", "python", "pip") or elsewhere(words), words
    for start in ELSEWHERE:
        assert any(" ".join(words).startswith(start) for words in EVERY), f"no page has {start} any more"


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_shell_blocks_are_shell(block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@functools.cache
def parsed(words: tuple[str, ...]):
    """A command as Snakemake's own parser reads it."""
    from snakemake.cli import get_argument_parser

    first = words.index("snakemake") + 1
    return get_argument_parser().parse_args([word for word in words[first:] if word != "…"])


def snakemake_commands(all_of) -> list[tuple[str, ...]]:
    return sorted({tuple(words) for words in all_of if "snakemake" in words and not elsewhere(words)})


# The README's mine.yaml, with what pages on selections and fine-tuning add to it.
MINE = {
    **OWN,
    "data": {**OWN["data"], "eval": MORE["data"]["eval"]},
    "selections": {"best": {"method": "influence", "top": 3, "baselines": ["random"]}},
    "finetune": {"methods": ["influence"], "bins": ["top 20%"]},
    "export": {"hub": "owner/name"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project as a reader has it, with data of one's own, the files that pages name, stand-ins for the paper's."""
    folder = tmp_path_factory.mktemp("reader") / "icprobe"
    for part in dag.PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).symlink_to(dag.ROOT / part)
    words = ("apple", "pear", "plum", "fig", "nut", "a date")
    tasks = [{"question": "Name a fruit.", "answer": "apple"}, {"question": "Name a tool.", "answer": "saw"}]
    rows = [{**row, "published_icp": ">0.9"} for row in demo_rows("train")]
    judged = {"instruction": "Say it.", "dataset": "koala", "len_1": 9, "len_2": 5, "preference": 1.0}
    given = {
        "private/my_examples.csv": pd.DataFrame({"prompt": "Say it.", "response": words}).to_csv(index=False),
        "private/my_tasks.jsonl": _lines(tasks),
        "private/my_prompts.jsonl": _lines([{"instruction": "Say it.", "output": "fig"}]),
        "mine.yaml": yaml.safe_dump(MINE),
        **{found[1]: block.text for block in of("yaml") if (found := re.match(r"# (that|served)\.yaml", block.text))},
        "../shared/data/alpaca/alpaca_bins.jsonl": _lines(rows),
        "../shared/data/alpaca/kmeans_100.json": json.dumps(rows[:40]),
        "../shared/data/annotations/OpenHermes-2.5-Mistral-7B.jsonl": _lines([judged]),
    }
    for name, text in given.items():
        path = folder / (name if "." in name else f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "../shared/data/published").mkdir()
    np.savez(folder / "../shared/data/published/scores_part.npz", icp=np.zeros(3), influence=np.zeros((3, 2)))
    return folder


def _lines(rows) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def test_snakemake_reads_every_command_and_knows_its_targets(project):
    listed = ["--nocolor", "--list-rules", "--cores", "1"]  # some rules are of selections
    known = {*dag.forked([*listed, "--configfile", "mine.yaml"], project).output.split()}
    known |= {*dag.forked(listed, project).output.split()}
    for words in snakemake_commands(EVERY):
        for target in parsed(words).targets:
            # A module's rules, in another workflow.
            assert target.removeprefix("icprobe_") in known or "/" in target, (
                f"{' '.join(words)}: no rule is called {target}"
            )
        for file in parsed(words).configfile or []:
            assert (project / file).is_file(), f"{' '.join(words)}: there is no {file}"


def groups() -> dict[tuple[str, ...], list[str]]:
    """{what else a plan depends on: targets}, so that commands on one configuration are planned at once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for words in snakemake_commands(SHELL):
        options = [
            word for name in ("--config", "--profile", "--resources", "--configfile") for word in given(words, name)
        ]
        targets = found.setdefault(tuple(options), [])
        targets += [target for target in parsed(words).targets or ["all"] if target not in targets]
    return found


def given(words: tuple[str, ...], name: str) -> list[str]:
    """An option of a command, as it stands there, with its values."""
    if name not in words:
        return []
    after = words[words.index(name) + 1 :]
    end = next((place for place, word in enumerate(after) if word.startswith("-")), len(after))
    return [name, *[word for word in after[:end] if word not in parsed(words).targets]]


GROUPS = groups()


@pytest.mark.parametrize("options", GROUPS, ids=" ".join)
def test_snakemake_plans_every_command(options, project):
    ended = dag.forked(["--nocolor", "-n", "--cores", "2", *GROUPS[options], *options], project, WANDB_MODE="disabled")
    assert ended.returncode == 0, ended.output[-3000:]
    assert ended.jobs
    if "configs/paper.yaml" in options:
        page = (dag.ROOT / "docs/reproduction.md").read_text(encoding="utf-8")
        assert f"This plans {sum(ended.jobs.values())} jobs" in page


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_commands_on_data_of_ones_own_run_to_their_end(project):
    """As they stand, but for the model, which is tiny; `publish` alone needs the hub."""
    attribution = {**MINE["attribution"], **TINY["attribution"]}
    (project / "mine.yaml").write_text(yaml.safe_dump({**MINE, **TINY, "attribution": attribution}))
    ran = 0
    for words in sorted({tuple(words) for words in SHELL if words[-1] == "mine.yaml" and words[0] == "snakemake"}):
        if "publish" not in words and "--profile" not in words:
            ended = dag.forked(["--nocolor", *words[1:]], project, WANDB_MODE="disabled")
            assert ended.returncode == 0, f"{' '.join(words)}\n{ended.output[-3000:]}"
            ran += 1
    assert ran > 5


def test_make_knows_every_target():
    for words in sorted({tuple(words) for words in EVERY if words[0] == "make"}):
        ended = subprocess.run([*words, "--dry-run"], cwd=dag.ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{' '.join(words)}: {ended.stderr}"


def test_python_finds_every_script_and_its_options():
    seen = 0
    for words in {tuple(words) for words in EVERY if words[0] == "python"}:
        what, *arguments = words[2:] if words[1] == "-m" else words[1:]
        path = Path(f"{what.replace('.', '/')}.py") if words[1] == "-m" else Path(what)
        places = [dag.ROOT / path, dag.ROOT / "src" / path, dag.ROOT / "src" / path.with_suffix("") / "__main__.py"]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            assert what == "timeit", f"{' '.join(words)}: there is no {what}"
            continue
        options = {word.split("=")[0] for word in arguments if word.startswith("--")}
        if what not in ("icprobe.workflow.asks", "benchmarks/light_jobs.py"):  # whose options are Snakemake's
            assert not {name for name in options if f'"{name}"' not in file.read_text(encoding="utf-8")}, words
        seen += 1
    assert seen > 8


def test_what_a_job_asks_is_told_as_the_page_shows(project):
    (words,) = {tuple(words) for words in SHELL if "icprobe.workflow.asks" in words}
    command = [sys.executable, *words[1:]]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    page = (dag.ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert ended.stdout.splitlines()[0].split() == re.search("^rule +jobs +memory.*", page, re.MULTILINE)[0].split()


def test_pip_installs_what_the_project_names():
    import tomllib

    extras = tomllib.loads((dag.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {Requirement(name).name: name for names in extras.values() for name in names}
    # Words of transformers, what docs/responses.md says is not tried, ours, and what deploys us and is never imported.
    others = ("timm", "vllm", "icprobe", "torch", "snakedeploy")
    for words in {
        tuple(words) for words in EVERY if words[:2] == ("pip", "install") or words[:2] == ["pip", "install"]
    }:
        for asked in words[2:]:
            if asked.startswith("."):
                assert asked[2:-1] in extras, f"there is no extra {asked}"
            elif not asked.startswith("git+") and Requirement(asked).name not in others:
                assert Requirement(asked).name in named, asked


# --- YAML and JSON ----------------------------------------------------------------------------------------------

NOT_OURS = {"# axolotl": "axolotl's; docs/training.md says against which code it was checked"}


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_what_the_configuration_takes(block):
    """Alone where it names an experiment, otherwise over mine.yaml as the page has it."""
    raw = yaml.safe_load(block.text)
    if block.text.splitlines()[0] in NOT_OURS:
        assert set(raw) == {"datasets"}
        return
    if "experiment" not in raw:
        base = copy.deepcopy({**OWN, "data": MINE["data"]})
        for other in of("yaml"):
            if other.page == block.page and other.text.startswith("# mine.yaml"):
                update_config(base, yaml.safe_load(other.text))
        for table in raw.get("data", {}):
            base["data"].pop(table, None)
        update_config(base, raw)
        raw = base
    load(raw, METHODS)


def test_json_is_json():
    assert of("json")
    for block in of("json"):
        json.loads(block.text)


def test_the_readmes_files_are_its_yaml_blocks():
    assert (OWN["experiment"], MORE["experiment"]) == ("mine", "more")


# --- Python -----------------------------------------------------------------------------------------------------

# Where names are from that a block uses without an import, because its page says so.
FROM = {
    "Sequence": "collections.abc",
    "Inputs": "icprobe.attribution.matrix",
    "Pieces": "icprobe.attribution.matrix",
    "Objective": "icprobe.attribution.objective",
    "Network": "icprobe.engine.network",
    "layers_of": "icprobe.engine.gradients",
    "collect_gradients": "icprobe.engine.gradients",
    "loss_backward": "icprobe.engine.gradients",
    "job": "icprobe.workflow.jobs",
}
# What the reader has: arguments, tables, a model.
GIVEN = {"inputs", "objective", "consume", "sequences", "values", "np", "model", "snakemake", "frame"}


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles_and_every_name_exists(block):
    before = [other.text for other in of("python") if other.page == block.page and other.line < block.line]
    tree = ast.parse(block.text)
    known = {*dir(builtins), *GIVEN}
    for earlier in map(ast.parse, before if block.page == "docs/training.md" else []):
        known |= _defined(earlier)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = {"icprobe": "icprobe", "pd": "pandas", "run": "icprobe.tracking.runs.Run"}.get(node.value.id)
            assert module is None or _reached(module, node.attr), f"{module} has no {node.attr}"
    for name in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known - _defined(tree):
        assert name in FROM, f"{block}: where is {name} from?"
        assert hasattr(importlib.import_module(FROM[name]), name)


def _defined(tree: ast.AST) -> set[str]:
    """The names that a block gives a value."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found |= {argument.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for argument in node.args}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return found | {"settings"} | {name.asname or name.name for node in imports for name in node.names}


def _reached(dotted: str, attribute: str) -> bool:
    try:
        return hasattr(importlib.import_module(dotted), attribute)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return hasattr(getattr(importlib.import_module(module), name), attribute)


def test_settings_of_the_trainer_are_its_own():
    from trl import SFTConfig

    for block in of("python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SFTConfig":
                assert {key.arg for key in node.keywords} <= {*SFTConfig.__dataclass_fields__}


def test_the_four_calls_and_what_reads_their_table_run(tmp_path, monkeypatch):
    """As they stand, with a model of random weights in SmolLM2's place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pd.DataFrame(demo_rows("train")[:6]).to_csv("my_examples.csv", index=False)
    pd.DataFrame(demo_rows("tasks")[:2]).to_json("my_tasks.jsonl", orient="records", lines=True)
    source = {**TINY["model_sources"]["tiny"], "corpus": str(dag.ROOT / "resources/demo/train.jsonl")}
    (calls,) = (block.text for block in of("python") if block.page == "docs/python.md")
    (reads,) = (block.text for block in of("python") if block.page == "docs/data.md")
    assert calls.count('"smollm2-135m-instruct"') == 1
    names: dict = {}
    exec(calls.replace('"smollm2-135m-instruct"', f'{source!r}, dtype="float32"'), names)
    assert len(names["best"]) == 1
    assert Path("best.jsonl").is_file()
    written = Path("results/mine/pythia/tables/scores.parquet")
    written.parent.mkdir(parents=True)
    names["scores"].to_parquet(written, index=False)
    exec(reads, names)
    assert names["table"]["rank_influence"].tolist() == names["scores"]["rank_influence"].tolist()


def test_the_engines_take_a_model_in_memory_as_the_page_says(tiny_model):
    (block,) = (block.text for block in of("python") if "capabilities_of" in block.text)
    names = {"model": copy.deepcopy(tiny_model("llama"))}
    exec(block, names)
    assert type(names["network"]).__name__ == "Network"

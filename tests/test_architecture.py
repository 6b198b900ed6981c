"""The house: floors import downwards only, and what must start fast imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "wandb", "openai", "datasets", "sklearn", "matplotlib", "trl", "peft"}


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_contracts_on_imports_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "icprobe",
        "icprobe.config",
        "icprobe.artifacts",
        "icprobe.attribution",
        "icprobe.formatting",
        "icprobe.figures",
        "icprobe.evaluation.judges",
        "icprobe.paths",
        "icprobe.workflow.plan",
        "icprobe.workflow.resources",
    ],
)
def test_what_the_snakefile_imports_is_light(name):
    loaded = modules_after(f"import {name}")
    assert name in loaded
    assert not loaded & HEAVY


def test_analysis_and_tables_load_neither_torch_nor_transformers():
    names = [
        "analysis.correlations",
        "evaluation.win_rates",
        "evaluation.held_out",
        "analysis.statistics",
        "figures.scatter",
        "tables.checking",
    ]
    names += ["tables.fitting", "report.build", "workflow.jobs"]
    loaded = modules_after("\n".join(f"import icprobe.{name}" for name in names))
    assert not loaded & {"torch", "transformers"}


def test_the_table_jobs_read_tokens_without_torch(tmp_path, tokenizer):
    import icprobe.artifacts

    tokenizer.save_pretrained(tmp_path)
    icprobe.artifacts.write_manifest(tmp_path, max_positions=128, vocabulary=512, plain_tokenizer=True)
    loaded = modules_after(
        f"from icprobe.texts.tokenizing import reader\nreader({str(tmp_path)!r}).counts(['some text'])"
    )
    assert "transformers" in loaded
    assert "torch" not in loaded


def test_no_script_loads_torch_before_its_job_has_set_the_environment():
    """How threads wait and which progress bars show, torch and transformers read when they are imported."""
    before = [
        path.read_text(encoding="utf-8").partition("\nwith job(")[0] for path in ROOT.glob("workflow/scripts/*/*.py")
    ]
    assert len(before) > 40
    loaded = modules_after("\n".join(text for text in before if "snakemake" not in text))
    assert "icprobe.workflow.jobs" in loaded
    assert not loaded & {"torch", "transformers"}

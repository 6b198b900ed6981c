"""What `snakemake -n` says of the work of jobs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake_interface_logger_plugins.common import LogEvent

from icprobe import cores
from icprobe.attribution import methods_of
from icprobe.config import Config
from icprobe.workflow import gpus
from icprobe.workflow.dry_run import Brief, emulated, work
from icprobe.workflow.plan import Plan
from icprobe.workflow.resources import estimate_seconds

JOBS = [("attribute", 40, 4_000, True), ("score", 5, 500, False)]


def test_fewer_cores_than_those_of_the_estimates_are_told_what_they_may_take():
    total = sum(estimate_seconds(minutes, heavy) for _, minutes, _, heavy in JOBS)
    for here, times in ((1, 8**0.8), (2, 4**0.8), (4, 2**0.8)):
        noun = "core" if here == 1 else "cores"
        told = f"A100; on the {here} {noun} here it may be up to {times * total / 60:.0f} min. `snakemake"
        assert told in work(JOBS, here)


def test_as_many_cores_as_those_of_the_estimates_and_gpus_are_told_nothing_more():
    for said in (work(JOBS), work(JOBS, 8), work(JOBS, 64)):
        assert "for 8 cores or an A100; `snakemake estimate` measures yours." in said
    assert work([], 2) == ""


def test_shell_commands_are_shown_where_there_is_one():
    brief = Brief(dry=lambda: False, outlook=str)
    # By another name where a script itself calls `shell`.
    for command, shown in (({"shellcmd": "echo 1"}, True), ({"cmd": "echo 1"}, True), ({"shellcmd": None}, False)):
        assert brief(SimpleNamespace(msg="Shell command", event=LogEvent.SHELLCMD, **command)) is shown


def planned(given):
    config = Config.model_validate(given)
    return Plan(config, methods_of(config))


@pytest.mark.parametrize(
    ("sections", "rules", "said"),
    [
        ({}, {"attribute", "fine_tune"}, "below attribution and finetune in"),
        ({"finetune": "float32"}, {"attribute", "fine_tune", "generate"}, "--config attribution='{dtype: float32}' on"),
        ({"evaluation": "bfloat16"}, {"generate_base"}, "below evaluation in"),
        ({}, {"score", "report"}, ""),
        ({}, {"sum_covariances"}, "below attribution in"),
        ({"evaluation": "bfloat16"}, {"generate"}, "below evaluation in"),
        ({"attribution": "float32", "finetune": "float32"}, {"attribute", "retrain"}, ""),
    ],
)
def test_a_processor_that_emulates_bfloat16_is_told_with_the_way_out(sections, rules, said, demo, monkeypatch):
    monkeypatch.setattr(gpus, "listed", list)
    given = demo | {name: demo[name] | {"dtype": dtype} for name, dtype in sections.items()}
    for emulates in (False, True):
        monkeypatch.setattr(cores, "emulate_bfloat16", lambda emulates=emulates: emulates)
        found = emulated(planned(given), rules)
        assert (said in found) if emulates and said else found == ""


@pytest.fixture
def demo():
    return yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))


def test_what_computes_in_float32_or_elsewhere_is_not_told_of_bfloat16(demo, monkeypatch):
    monkeypatch.setattr(cores, "emulate_bfloat16", lambda: True)

    def said(rules=("attribute", "fine_tune", "generate"), gpus_here=(), **sections):
        monkeypatch.setattr(gpus, "listed", lambda: [*gpus_here])
        given = demo | {name: demo[name] | changes for name, changes in sections.items()} | {"bins": ["top 20%"]}
        given["finetune"] = given["finetune"] | {"methods": None, "bins": None}
        return emulated(planned(given), rules)

    assert "below attribution and finetune in" in said()
    assert "below finetune in" in said(attribution={"methods": ["one_step", "random"], "aggregators": {}})
    assert said(gpus_here=["0"]) == ""
    assert "below attribution in" in said(gpus_here=["0"], attribution={"device": "cpu"}, finetune={"device": "cuda"})

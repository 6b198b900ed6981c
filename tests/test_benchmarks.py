"""The benchmarks run, on a model of random weights: records, comparisons with the naive loop, tables, figures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from icprobe.engine import models
from icprobe.engine.admission import admit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` belongs to the repository, not to the installed package

from benchmarks import budgeted, comparisons, goals, ratios, reckoning, scaling, tables, worker  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-llama")
    source = {
        "source": "random",
        "architecture": "llama",
        "sizes": {},
        "corpus": str(ROOT / "resources" / "demo" / "train.jsonl"),
        "vocabulary": 400,
        "seed": 0,
    }
    models.prepare(source, folder, admit)
    return folder


def run(tmp_path, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.run"),
            *("--results", str(tmp_path / "results"), "--page", str(tmp_path / "performance.md")),
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_miniature_run_agrees_with_the_naive_loop_and_fills_the_page(tiny, tmp_path):
    (tmp_path / "performance.md").write_text("# Before\n\n<!-- table: influence-12 -->\nold\n<!-- end -->\n\nAfter.\n")
    done = run(
        tmp_path,
        *("--model", str(tiny), "--data", "resources/demo", "--examples", "10", "--tasks", "2", "--repeats", "2"),
        *("--threads", "1", "--only", "influence-12"),
        *("--contestants", "icprobe-influence,naive-influence,training-step"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "influence-12.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in record["rows"]}
    assert len(rows["icprobe: influence"]["seconds"]) == 2
    assert len(rows["plain training step"]["seconds"]) == 2
    assert len(rows["naive loop"]["seconds"]) == 1
    assert rows["icprobe: influence"]["examples"] == 4
    assert rows["icprobe: influence"]["tasks"] == 2
    assert rows["naive loop"]["error"] < 1e-4
    assert all(row["peak_mb"] > 50 for row in rows.values())
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert page.startswith("# Before")
    assert "After." in page
    assert "old" not in page
    assert "| naive loop |" in page
    assert "the plain training step" in page
    assert str(ROOT) not in page + json.dumps(record)


def test_absent_texts_end_in_one_sentence(tiny, tmp_path):
    done = run(tmp_path, "--model", str(tiny), "--data", str(tmp_path), "--only", "icp-12")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--data resources/demo" in done.stderr


def test_an_unknown_comparison_is_named(tmp_path):
    done = run(tmp_path, "--only", "nothing")
    assert done.returncode == 1
    assert "influence-12" in done.stderr


def test_every_row_has_a_contestant_and_a_reference_of_its_own_comparison():
    for comparison in [*comparisons.comparisons(whole=False), *comparisons.gpu()]:
        names = [entry.name for entry in comparison.entries]
        assert len(set(names)) == len(names)
        for entry in comparison.entries:
            assert entry.contestant in worker.CONTESTANTS
            assert entry.against in (None, "", *names)


def test_a_straight_line_is_none_off_itself_and_a_square_is():
    assert ratios.line_through([(1, 3), (2, 5), (4, 9)]) == pytest.approx((1, 2, 0))
    assert ratios.line_through([(1, 1), (2, 4), (4, 16)])[2] > 0.1


def test_a_goal_is_met_missed_or_not_measured():
    def row(contestant, *seconds, **facts):
        row = {"name": contestant, "contestant": contestant, "facts": facts, "seconds": seconds}
        return {**row, "median": seconds[1], "peak_mb": 4000}

    icp, peer, floor = (
        row("icprobe-icp", 10, 10, 20, operations=6e12),
        row("lm-eval", 20, 25, 80),
        row("matmul", 1, 1, 1),
    )
    floor["facts"]["rate"] = 5e11
    faster = {**floor, "facts": {"rate": 1e12}}
    narrow = {**floor, "facts": {"rate": 4e12}, "dtype": "bfloat16"}
    growth = [
        {"name": f"icp, N = {n}", "examples": n, "tasks": 2, "median": seconds, "peak_mb": 1000 + 100 * n}
        for n, seconds in ((1, 1), (2, 2), (4, 8))
    ]
    records = {"icp-12": {"rows": [icp, peer, floor, faster, narrow]}, "growth": {"rows": growth}}
    found = {goal.text: goal.row(records)[1:] for goal in goals.GOALS}
    # Of the fastest of the machine's products in the same dtype.
    assert found["ICP, 12 tasks: of the machine's fastest matrix products"] == ["0.60×", "no"]
    assert found["ICP, 12 tasks: lm-eval's time"] == ["2.50×", "no"]  # the median of 2, 2.5 and 4
    assert found["memory from N to 4 N examples: grows by"] == ["0.30 GB", "yes"]
    assert found["growth in examples and tasks: off a straight line"][1] == "no"
    assert found["a heavy job is ready after"] == ["–", "not measured"]
    assert {goal.key for goal in goals.GOALS} <= {c.key for c in comparisons.comparisons(False)} | {"import"}


def test_ties_at_the_border_count_as_recovered():
    import numpy as np

    full = np.array([1.0, *[0.5] * 10, *[0.0] * 9])  # the top decile: two of twenty, ten equal ones for one place
    assert budgeted.recovered(full, full) == 1
    assert budgeted.recovered(full, 1.0 * (np.arange(20) == 5)) == 1  # one of the ten, and the best, which comes first
    assert budgeted.recovered(full, -full) == 0


def test_the_growth_table_reads_its_own_rows(tmp_path):
    def row(name, n, m, seconds):
        tokens = {"examples": 10 * n, "tasks": 10 * m}
        return {"name": name, "examples": n, "tasks": m, "median": seconds, "peak_mb": 1000 + n, "tokens": tokens}

    record = {
        "rows": [
            *(row(f"icp, N = {n}", n, 12, 1 + n) for n in (10, 20, 40)),
            *(row(f"icp, M = {m}", 4, m, 2 * m) for m in (12, 24)),
            {"name": "influence, N = 10", "cannot": "failed"},
        ]
    }
    table = tables.growth(record)
    assert "icp in N: at most 0.0% off" in table
    assert "4 times the examples holds +0.03 GB" in table
    tables.growth_figure(record, tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").stat().st_size > 1000


def test_every_step_of_scaling_runs_and_fills_the_page(tmp_path):
    page = tmp_path / "scaling.md"
    page.write_text("<!-- table: measured -->\nold\n<!-- end -->\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.scaling", "--examples", "300", "--tasks", "7", "--shards", "3"),
            *("--folder", str(tmp_path), "--results", str(tmp_path / "scaling.json"), "--page", str(page)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert list(rows) == list(scaling.STEPS)
    assert "old" not in page.read_text()
    assert "300 examples × 7 tasks, 3 shards" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scaling.json", "scaling.md"]


def test_reckoned_operations_are_those_of_one_pair_after_another(monkeypatch):
    one = reckoning.Experiment(
        "one", 3, 2, 10, head=7, factors=6, depth=2, hidden=3, example_tokens=5, task_tokens=4, response_tokens=2
    )
    icp = sum(2 * 10 * 5 + sum(2 * 10 * 4 + 2 * 7 * 2 for _task in range(2)) for _example in range(3))
    assert reckoning.icp(one) == icp
    assert reckoning.one_step(one) == icp + 3 * 4 * 10 * 5  # two passes back besides the one forward
    assert reckoning.influence(one) == 3 * 6 * 10 * 5 + 2 * 3 * 2 * 10
    assert reckoning.hours(one, "icp") == icp / reckoning.RATES["icp"] / 3600
    # Where little can be held: two parts of the tasks' factors, eight groups of examples behind each.
    monkeypatch.setattr(reckoning, "BUDGET", 100)
    large = replace(one, blocks=1000)
    assert reckoning.influence(large) == 2 * 3 * 8 * 1000 * 5 + 8 * 2 * 2 * 1000 * 4 + 2 * 3 * 2 * 1000


def test_the_page_holds_what_is_reckoned_now():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert reckoning.table() in page, "run python -m benchmarks.reckoning"


def test_a_setting_of_the_reliability_curve_is_a_section_of_the_configuration():
    from benchmarks.reliability import changed

    assert changed("epochs=2,lora.rank=8,lora.init_seed=null,scheduler=linear") == {
        "epochs": 2,
        "lora": {"rank": 8, "init_seed": None},
        "scheduler": "linear",
    }

"""A long job says how far it is: done of total, rate and time left."""

import copy
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import time

import numpy as np
import pandas as pd
import pytest
import torch

from icprobe import artifacts
from icprobe.attribution import icp, icp_budget, influence, influence_mean, one_step
from icprobe.attribution.shards import compute
from icprobe.config.training import Finetune
from icprobe.engine import likelihood
from icprobe.engine.batching import batches
from icprobe.evaluation.generation import responses
from icprobe.progress import Progress
from icprobe.texts.prompts import encode
from icprobe.training.fine_tune import fine_tune


@pytest.fixture
def lines(caplog, monkeypatch):
    """Log lines of a bar that is moved on by (units, seconds, work), on a clock that stands still otherwise."""
    clock = [1000.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)

    def run(steps, work=None, **options):
        caplog.clear()
        with caplog.at_level(logging.INFO), Progress(**{"desc": "icp", "unit": "example", **options}) as progress:
            progress._time = lambda: clock[0]
            progress.start_t = progress.last_print_t = clock[0]
            if work is not None:
                progress.expect(progress.total, progress.unit, work)
            for units, seconds, *of_units in steps:
                clock[0] += seconds
                progress.update(units, *of_units)
        return [record.getMessage() for record in caplog.records]

    return run


def test_a_line_holds_done_total_rate_and_time_left(lines):
    assert lines([(20, 10), (40, 10)], total=90) == [
        "icp: 20/90 examples, 2 examples/s, 35 s left",
        "icp: 60/90 examples, 3 examples/s, 10 s left",
    ]


def test_slow_work_is_told_in_seconds_per_unit(lines):
    assert lines([(1, 40)], total=3) == ["icp: 1/3 examples, 40 s per example, 80 s left"]


def test_what_an_earlier_try_finished_counts_as_done_but_not_for_the_rate(lines):
    assert lines([(10, 10)], total=100, initial=80) == ["icp: 90/100 examples, 1 examples/s, 10 s left"]


def test_the_time_left_is_right_where_units_take_longer_and_longer(lines):
    """Examples come by length, from 10 tokens to 1,000; each goes with tasks of 300 tokens."""
    tokens = [round(10 * 100 ** (n / 107)) + 300 for n in range(108)]
    found = lines([(12, 0.02 * work, work) for work in tokens], total=108 * 12, work=sum(tokens))
    total, told = 0.02 * sum(tokens), []
    assert "left" not in found[0], "what is done is too little to tell by"
    for line in (line for line in found if "left" in line):
        done, left = map(int, re.match(r"icp: ([\d,]+)/.* (\d+) s left", line.replace(",", "")).groups())
        truly_left = 0.02 * sum(tokens[done // 12 :])
        if total / 3 <= total - truly_left < total:
            told.append((left, truly_left))
    assert len(told) > 10
    assert all(left == pytest.approx(truly_left, rel=0.25, abs=1) for left, truly_left in told), told


def test_what_was_found_and_what_remains_change_the_time_left(caplog):
    with caplog.at_level(logging.INFO), Progress(desc="icp", log_seconds=5) as progress:
        progress.expect(100, "pair", work=1000)
        progress.found(50, 100)
        begun = progress.start_t
        progress._time = lambda: begun + 10
        progress.update(10, 200)
        assert caplog.messages == ["icp: 60/100 pairs, 1 pairs/s, 35 s left"]
        progress._time = lambda: begun + 20
        progress.remains(20, 100)
        progress.update(10, 50)
        assert caplog.messages[-1] == "icp: 70/80 pairs, 1 pairs/s, 4 s left"
        assert "<00:04" in str(progress)


def test_icp_tells_the_time_left_by_tokens(inputs, caplog, monkeypatch):
    """On a clock that goes on with the tokens that go through the model; examples are longer and longer."""
    ours, clock = inputs("llama"), [0.0]
    texts = [{"instruction": "Say it.", "input": "", "output": "word " * n} for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    ours.train = pd.DataFrame([{"id": f"{n}", **text} for n, text in enumerate(texts)])
    encoded = [encode(ours.tokenizer, ours.prompts.query(text), ours.prompts.target(text)) for text in texts]
    counts = {"n_query": [one.n_context for one in encoded], "n_target": [one.n_target for one in encoded]}
    ours.lengths = pd.DataFrame({"id": ours.train["id"], **counts})

    def likelihoods(network, groups, base=None):
        clock[0] += sum(len(prefix) + sum(len(suffix.ids) for suffix in suffixes) for prefix, suffixes in groups)
        return [torch.zeros(len(suffixes)) for _, suffixes in groups]

    monkeypatch.setattr(likelihood, "packed_log_likelihoods", likelihoods)
    with caplog.at_level(logging.INFO), Progress(desc="icp", log_seconds=30) as progress:
        progress._time = lambda: clock[0]
        ours.progress, told = progress, []
        for _ in icp.attribute(ours, "icp", [np.array([row]) for row in range(len(texts))], batch_tokens=10):
            told.append((clock[0], int(re.search(r"(\d+) s left", caplog.messages[-1])[1])))
    end = told[-1][0]
    late = [(left, end - at) for at, left in told if end / 3 <= at < end]
    assert late
    assert all(left == pytest.approx(truly_left, rel=0.25) for left, truly_left in late), late


def test_lines_are_seconds_apart_and_the_end_is_told_once(lines):
    found = lines([(1, 1)] * 60, total=60)
    assert 6 <= len(found) <= 7, found
    assert [re.match(r"icp: (\d+)/60", line)[1] for line in found] == sorted(
        (re.match(r"icp: (\d+)/60", line)[1] for line in found), key=int
    )
    assert sum("60/60" in line for line in found) == 1


def test_without_a_total_there_is_no_time_left(lines):
    assert lines([(30, 10)], total=None) == ["icp: 30 examples, 3 examples/s"]


def test_parts_of_units_count_and_add_up_to_the_end(lines):
    found = lines([(0.1, 1)] * 30, total=3)
    assert [line.split(" ")[1] for line in found] == ["1/3", "2/3", "3/3"]


def test_what_is_found_on_the_way_counts_as_done_but_not_for_the_rate(caplog):
    with caplog.at_level(logging.INFO), Progress(desc="icp", log_seconds=5) as progress:
        progress.expect(1000, "pair")
        progress.found(800)
        begun = progress.start_t
        progress._time = lambda: begun + 10
        progress.update(100)
        assert caplog.messages == ["icp: 900/1,000 pairs, 10 pairs/s, 10 s left"]


def test_a_line_comes_while_one_step_takes_long(caplog):
    with caplog.at_level(logging.INFO), Progress(total=3, desc="icp", unit="pair", log_seconds=0.02) as progress:
        ends = time.monotonic() + 20
        while len(caplog.messages) < 2 and time.monotonic() < ends:
            time.sleep(0.01)
        assert caplog.messages[:2] == ["icp: 0/3 pairs, 0 pairs/s"] * 2
        progress.update(3)
    ended = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) == ended
    assert "3/3" in caplog.messages[-1]


def shares(messages, description):
    """The shares of the work that lines tell, in their order, and the units."""
    found = [re.match(rf"{description}: ([\d,.]+)/([\d,]+) (\w+)s,", message) for message in messages]
    numbers = [[float(number.replace(",", "")) for number in match.groups()[:2]] for match in found if match]
    return [done / total for done, total in numbers], {match[3] for match in found if match}


@pytest.mark.parametrize(
    ("module", "method", "unit", "batch_tokens"),
    [
        (icp, "icp", "pair", 10**6),  # all examples are one batch
        (icp_budget, "icp_budget", "pair", 10**6),
        (one_step, "one_step", "pair", 10**6),
        (influence, "influence", "token", 10**6),
        (influence_mean, "influence_mean", "token", 200),
    ],
)
def test_a_method_tells_what_it_has_done_within_a_batch_up_to_the_end_and_changes_no_number(
    module, method, unit, batch_tokens, inputs, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("icprobe.progress.LOG_SECONDS", 1e-3)
    ours, settings = inputs("llama"), {"batch_tokens": 200}
    if method == "icp_budget":
        settings["round_tasks"] = 1
    alone = {"methods": [method]} if method == "influence" else {}
    runs = batches(ours.lengths, batch_tokens)
    silent = [block for *_, block in module.attribute(ours, method, runs, **alone, **settings)]
    with caplog.at_level(logging.INFO):
        per_task = method not in ("icp_budget", "influence_mean")
        table = compute(module.__name__, [method], ours, settings, 1, 1, batch_tokens, tmp_path, per_task)[method]
    assert (table.drop(columns="id").to_numpy() == np.concatenate(silent)).all()
    told, units = shares(caplog.messages, method)
    assert units == {unit}
    assert told == sorted(told)
    assert told[-1] == 1
    assert len({share for share in told if 0 < share < 1}) >= 3, told


def between_whole_units(messages, description):
    """What lines tell between one whole unit and the next."""
    found = [re.match(rf"{description}: ([\d.]+)/", message) for message in messages]
    done = [float(match[1]) for match in found if match]
    assert done == sorted(done)
    return [number for number in done if number % 1]


def test_a_batch_of_responses_tells_its_tokens(prompts, tiny_model, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr("icprobe.progress.LOG_SECONDS", 1e-3)
    rows = [{"id": f"{n}", "instruction": f"Count to {n}.", "input": "", "output": "-"} for n in range(3)]
    settings = {"max_new_tokens": 20, "batch_size": 3, "device": "cpu"}
    with caplog.at_level(logging.INFO):
        responses(copy.deepcopy(tiny_model("llama")), tokenizer, prompts, rows, "base", settings)
    assert between_whole_units(caplog.messages, "generating base")
    assert any("3/3 prompts" in message for message in caplog.messages)


def test_a_step_of_fine_tuning_tells_its_passes(prompts, tiny_model, tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("icprobe.progress.LOG_SECONDS", 1e-3)
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    artifacts.write_manifest(base)
    config = {
        **Finetune(batch_size=1, accumulation=4, epochs=1, device="cpu", dtype="float32").model_dump(),
        "checkpoint_minutes": 10,
    }
    rows = [{"id": f"{n}", "instruction": f"Say {n}.", "input": "", "output": f"{n}!"} for n in range(8)]
    with caplog.at_level(logging.INFO):
        fine_tune(base, rows, prompts, tmp_path / "out", config, 0, tmp_path / "partial")
    assert set(between_whole_units(caplog.messages, "fine-tuning")) >= {0.5, 1.5}
    assert any("2/2 steps" in message for message in caplog.messages)


ON_A_TERMINAL = """
import logging, time
from types import SimpleNamespace
from icprobe.workflow.jobs import job
from icprobe.progress import Progress
from icprobe.texts.prompts import encode

snakemake = SimpleNamespace(rule="r", wildcards={}, params={}, input=[], output=[], log=["r.log"], threads=1)
with job(snakemake):
    with Progress(total=40, desc="icp", unit="example", log_seconds=0.1, mininterval=0.01) as progress:
        for step in range(40):
            time.sleep(0.01)
            progress.update(1)
            if step == 20:
                logging.info("a word in between")
"""


def test_on_a_terminal_bar_and_lines_keep_apart_and_the_log_has_the_lines(tmp_path):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    environment = {n: v for n, v in os.environ.items() if not n.startswith("ICPROBE")}
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], cwd=tmp_path, env=environment, stderr=end)
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # Linux says so at the end of a pseudo-terminal
        pass
    assert process.wait() == 0, shown.decode()
    # What a line shows at last: what follows its last carriage return.
    lines = [line.rstrip("\r").split("\r")[-1] for line in shown.decode().split("\n")]
    assert any(re.fullmatch(r"\S+ \S+ a word in between", line) for line in lines), lines
    assert [line for line in lines if "40/40" in line and "100%" in line]
    assert not [line for line in lines if "examples/s" in line and "left" in line]
    log = (tmp_path / "r.log").read_text()
    assert "icp: 40/40 examples" in log
    assert "a word in between" in log

"""What the report shows of the chain, of models and domains, and of differences between methods."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import test_chain
from reports import experiment, figure
from test_report import page, plain

from icprobe.analysis.chain import chain, weak_link
from icprobe.evaluation.held_out import DIFFERENCE_COLUMNS as HELD_OUT_DIFFERENCES
from icprobe.evaluation.win_rates import DIFFERENCE_COLUMNS

EFFECTS = {"best": 0.021, "worst": -0.034, "random": 0.005}


@pytest.fixture
def arguments(tmp_path):
    """An experiment with all three; the domain `law` must not stand in tables over all tasks."""
    made = experiment(tmp_path)
    table = chain(*test_chain.matrices(n=30), test_chain.AGGREGATORS, resamples=50)
    (tmp_path / "weak_link.txt").write_text(weak_link(table) + "\n", encoding="utf-8")
    by_domain = [table.assign(domain="all"), table.assign(domain="law", value=0.123)]
    where = ("smollm2", "all", "gt-0.80")
    found = (*where, "icp", "random", 24, 12.34, 3.2, 21.9, 0.004, 0.012)
    untested = (*where, "influence", "random", 1, *[np.nan] * 5)
    differences = pd.DataFrame([found, untested], columns=["model", "domain", *DIFFERENCE_COLUMNS])
    model = made["models"]["smollm2"]
    made["models"]["smollm2"] = dataclasses.replace(
        model,
        chain=pd.concat(by_domain).assign(model="smollm2"),
        weak_link=tmp_path / "weak_link.txt",
        differences=differences,
        win_rates=model.win_rates.assign(length_controlled_win_rate=41.4),
    )
    figure(tmp_path / "sweep.svg", "by model and domain")
    rows = [
        ("smollm2", "all", "all", 12, 0.61),
        ("smollm2", "law", "in-domain", 6, 0.52),
        ("b", "all", "all", 12, np.nan),
    ]
    sweep = pd.DataFrame(rows, columns=["model", "domain", "kind", "n_tasks", "value"])
    sweep.assign(low=0.4, high=0.7, n=96).to_csv(tmp_path / "sweep.csv", index=False)
    return made | {"sweep": tmp_path / "sweep.svg"}, table


def test_the_chain_is_told_in_words_and_by_step_size(arguments, tmp_path):
    made, table = arguments
    text = plain(page(tmp_path, **made))
    assert weak_link(table) in text
    for eta in test_chain.ETAS:
        rows = table[table["learning_rate"] == eta].set_index(["level", "link", "statistic"])["value"]
        shown = [
            rows[level, link, "spearman"]
            for level in ("element", "example")
            for link in ("icp~one_step", "one_step~influence")
        ]
        pattern = r" \[[^]]*\] ".join(f"{value:.2f}".replace("-", "−") for value in shown)
        assert re.search(
            pattern + r" \[[^]]*\] " + f"{rows['element', 'one_step~influence', 'relative_error']:.3f}", text
        )


def test_models_and_domains_are_shown_with_their_kind(arguments, tmp_path):
    text = page(tmp_path, **arguments[0])
    section = text[text.index('<section id="sweep"') :]
    section = plain(section[: section.index("</section>")])
    assert "smollm2 law in-domain 6 0.52 [0.40, 0.70] 96" in section
    assert "b all all 12 – 96" in section
    assert '<a href="#sweep">' in text


def test_differences_and_length_control_stand_beside_the_win_rates(arguments, tmp_path):
    text = page(tmp_path, **arguments[0])
    assert "icp − random 24 12.3 [3.2, 21.9] 0.0040 0.0120" in plain(text)
    assert "<strong>0.0120</strong>" in text
    assert "influence − random 1 – – –" in plain(text)
    assert "Length-controlled, %" in text
    assert "41.4 † " in plain(text)
    assert plain(text).count("† Caution: this uses fewer than 100 prompts.") == 2  # overall, and by subset and seed


def test_an_experiment_without_them_says_nothing_of_them(tmp_path):
    text = page(tmp_path, **experiment(tmp_path))
    assert 'id="sweep"' not in text
    assert "The chain:" not in text
    assert "Differences between methods" not in text


def test_the_tail_patch_and_held_out_gains_stand_before_the_win_rates(arguments, tmp_path):
    made, _ = arguments
    columns = ["method", "bin", "set", "subset", "seed", "n", "nll", "nll_base", "gain", "low", "high"]
    rows = [
        ("icp", ">0.8", "tasks", "overall", "all", 12, 2.0, 2.1234, 0.1234, 0.05, 0.2),
        ("icp", ">0.8", "eval", "overall", "all", 24, 3.0, 2.9, -0.1, -0.3, 0.1),
        ("icp", ">0.8", "eval", "law", "0", 9, 3.0, 2.9, -0.777, -0.8, -0.7),
        *(("random", ">0.8", name, "overall", "all", 0, *[np.nan] * 5) for name in ("tasks", "eval")),
    ]
    held_out = pd.DataFrame(rows, columns=columns).assign(model="smollm2", domain="all")
    pair = ("smollm2", "all", "tasks", ">0.8", "icp", "random", 12, 0.0567, 0.01, 0.1, 0.004, 0.012)
    differences = pd.DataFrame([pair], columns=["model", "domain", *HELD_OUT_DIFFERENCES])
    patched = [("icp", which, "10", 10, effect, effect - 0.001, effect + 0.001) for which, effect in EFFECTS.items()]
    tail_patch = pd.DataFrame(patched, columns=["method", "which", "k", "n", "effect", "low", "high"])
    made["models"]["smollm2"] = dataclasses.replace(
        made["models"]["smollm2"],
        held_out=held_out,
        held_out_differences=differences,
        tail_patch=tail_patch.assign(model="smollm2"),
    )
    html = page(tmp_path, **made)
    assert html.index('id="tail-patch"') < html.index('id="held-out"') < html.index('id="win-rates"')
    text = plain(html)
    assert "icp &gt;0.8 0.1234 [0.0500, 0.2000] 2.123 → 2.000 −0.1000 [−0.3000, 0.1000] 2.900 → 3.000" in text
    assert "random &gt;0.8 – empty – empty" in text
    assert "tasks &gt;0.8 icp − random 12 0.0567 [0.0100, 0.1000] 0.0040 0.0120" in text
    assert "icp 10 10 0.021 [0.02, 0.022] −0.034 [−0.035, −0.033] 0.005 [0.004, 0.006]" in text
    assert "it would judge itself" in text
    assert "Of 1 fine-tuned models 1 find the answers of the 12 tasks likelier than the base model does" in text

"""Which method is right, as a reader sees it: the report's section, the last words, the headline and the frontier."""

import dataclasses
import itertools
import json
import re

import dag
import numpy as np
import pandas as pd
import pytest
import truths
from reports import METHODS, experiment

from icprobe.analysis import headline
from icprobe.analysis.frontier import agreements, frontier, operations, pareto, tokens, words
from icprobe.figures.frontier import frontier_points
from icprobe.report import charts, terminal_summary, verdicts
from icprobe.report.build import build
from icprobe.report.findings import ModelInputs
from icprobe.workflow import work


def page(directory, **tables):
    """The report of the made-up experiment with these tables; None takes one away."""
    arguments = experiment(directory)
    inputs = {**truths.tables(), **tables}
    arguments["models"] = {name: dataclasses.replace(model, **inputs) for name, model in arguments["models"].items()}
    build(directory / "report.html", **arguments)
    return (directory / "report.html").read_text(encoding="utf-8")


def plain(text):
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def section(text):
    """The section "Which method is right?" of a page, as it is; empty where there is none."""
    found = re.search(r'<section id="right".*?</section>', text, re.DOTALL)
    return found[0] if found else ""


def table_of(text):
    """{row's heading: {column's title: (cell's text, whether it is bold)}} of its first table."""
    table = re.search(r'<table class="sortable" id="right-0">.*?</table>', text, re.DOTALL)[0]
    heads = [plain(cell) for cell in re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", table)]
    rows = {}
    for row in re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", table):
        title, *cells = [part for part in re.split(r"</th>|<td[^>]*>|</td>", row) if part]
        cells = {head: (plain(cell), "<strong>" in cell) for head, cell in zip(heads[1:], cells, strict=True)}
        rows[title] = cells
    return heads, rows


# --- the section ------------------------------------------------------------------------------------------------


def test_all_truths_stand_side_by_side_with_intervals_ceiling_and_n(tmp_path):
    heads, rows = table_of(section(page(tmp_path)))
    assert heads == [
        "Method",
        "LDS rank correlation, −1 to 1 64 subsets × 2 seeds, 12 tasks",
        "LDS, eval prompts rank correlation, −1 to 1 64 subsets × 2 seeds, 12 prompts",
        "Removal nats per task 11 examples removed, 8 random removals × 2 seeds",
        "Leave-one-out rank correlation, −1 to 1 24 examples × 2 seeds",
        "Tail patch nats per task 10 best examples",
        "AUC of planted 0 to 1 81 against 27 examples",
    ]
    shown = {title: [text for text, _ in cells.values()] for title, cells in rows.items()}
    assert shown["icp"] == [
        *("0.18 [0.05, 0.31]", "0.09 [−0.04, 0.22]", "0.3 [−0.2, 0.8]", "0.10 [−0.03, 0.23]", "0.5 [−0.1, 2]"),
        "0.60 [0.50, 0.70]",
    ]
    assert shown["ceiling"] == ["0.62 [0.52, 0.72]", "0.62 [0.52, 0.72]", "–", "0.62 [0.52, 0.72]", "–", "–"]
    assert shown["by chance"] == ["0", "0", "0", "0", "0.2 [−0.1, 2]", "0.50"]
    assert shown["random"] == ["–", "–", "–", "–", "–", "0.50 [0.40, 0.60]"], "NaN is a dash"
    methods = [title for title in rows if title not in ("ceiling", "by chance")]
    assert methods == [*METHODS, "number of document tokens", "number of response tokens"]


def test_only_what_is_significant_is_bold(tmp_path):
    def bold(**tables):
        _, rows = table_of(section(page(tmp_path, **tables)))
        return {
            (title, head.split()[0]) for title, cells in rows.items() for head, (_, is_bold) in cells.items() if is_bold
        }

    # influence_log leads influence by too little; influence's best cost more than chance; length's cost less.
    assert bold() == {("influence", "Removal")}
    ahead = {**truths.PREDICTED, "influence": 0.1}
    assert ahead["influence_log"] - ahead["one_step"] < 0.2
    assert bold(lds=truths.lds(ahead), lds_differences=truths.lds_differences(ahead)) == {("influence", "Removal")}
    clear = bold(lds=truths.lds(ahead), lds_differences=truths.lds_differences(ahead, apart=0.1, sets=("tasks",)))
    assert clear == {("influence", "Removal"), ("influence_log", "LDS")}
    assert bold(lds_differences=None, removal=None) == set()


def test_a_sentence_says_who_predicts_retraining_and_who_is_told_apart(tmp_path):
    said = plain(section(page(tmp_path)))
    assert (
        "influence_log predicts retraining best: 0.48 [0.35, 0.61] of a ceiling of 0.62 [0.52, 0.72]; influence 0.42 "
        "[0.29, 0.55], one_step 0.31 [0.18, 0.44], icp 0.18 [0.05, 0.31], number of response tokens 0.22 [0.09, 0.35], "
        "number of document tokens 0.05 [−0.08, 0.18]."
    ) in said
    rivals = "number of document tokens and number of response tokens"
    told = f"64 subsets × 2 seeds tell influence_log apart from icp, {rivals} (Holm, 5%), but not from influence and"
    assert f"{told} one_step." in said
    assert "Leaving out the best 11 examples of influence (1.25 nats) costs the tasks more" in said
    assert "ceiling is below" not in said
    assert "no ceiling" not in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": 1}, "There is no ceiling with one seed"),
        ({"ceiling": 0.41}, "The ceiling is below 0.5: the trainings are too small or too noisy"),
        (
            {"predicted": {"icp": 0.2, "response tokens": 0.3}},
            "No method does better than the number of response tokens",
        ),
        ({"predicted": {"icp": 0.1, "response tokens": 0.0}}, "includes 0: these subsets do not show"),
        ({"predicted": {"icp": -0.3, "response tokens": 0.0}}, "ranks subsets against what training does"),
        ({"predicted": {"icp": np.nan}}, "No method has an LDS"),
        ({"spread": 3e-4}, "These trainings hardly changed the model: by which examples it saw, an answer's"),
    ],
)
def test_what_limits_the_numbers_is_said(changes, sentence):
    assert sentence in " ".join(verdicts.verdict(headline.of_set(truths.lds(**changes))))
    assert sentence not in " ".join(verdicts.verdict(headline.of_set(truths.lds())))


def test_one_seed_leaves_the_ceiling_unknown_in_the_table(tmp_path):
    _, rows = table_of(section(page(tmp_path, lds=truths.lds(seeds=1), leave_one_out=None)))
    assert [text for text, _ in rows["ceiling"].values()] == ["unknown", "unknown", "–", "–", "–"]


def test_every_column_and_the_ceiling_are_explained(tmp_path):
    text = section(page(tmp_path))
    terms = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text)
    assert [term for term, _ in terms] == [
        *("LDS", "LDS, eval prompts", "Removal", "Leave-one-out", "Tail patch", "AUC of planted", "ceiling"),
        *("number of document tokens and number of response tokens", "95% interval"),
    ]
    assert all(len(words) > 40 and words.endswith(".") for _, words in terms)


def test_the_section_is_there_only_where_something_says_which_method_is_right(tmp_path):
    none = dict.fromkeys(truths.tables())
    text = page(tmp_path)
    order = re.findall(r'<section id="([^"]+)"', text)
    assert order[order.index("found") + 1] == "right"
    assert '<a href="#right">' in text
    assert text.count("it would judge itself") == 1, "the tail patch stands here and nowhere else"
    # A tail patch is one step of training; it says that nothing was retrained.
    stepped = section(page(tmp_path, **{**none, "tail_patch": truths.tables()["tail_patch"]}))
    assert "retraining, is not in this report" in stepped
    assert "frontier" not in stepped
    # One truth alone is told, and the page does not deny it.
    for name, said in {"lds": "predicts retraining best", "leave_one_out": "left out of training one at a"}.items():
        alone = experiment(tmp_path) | {"labels": [], "sound_labels": {}}
        bare = ModelInputs(scores=alone["models"]["smollm2"].scores, **{name: truths.tables()[name]})
        build(tmp_path / f"{name}.html", **alone | {"models": {"smollm2": bare}})
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert said in section(text)
        assert "full trainings (finetune, truth)" not in text
    # What labels say stands in a section of theirs.
    assert section(page(tmp_path, **none)) == ""
    arguments = experiment(tmp_path) | {"labels": [], "sound_labels": {}}
    build(tmp_path / "bare.html", **arguments)
    bare = (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert section(bare) == ""
    assert "#right" not in bare


# --- terminal and headline ----------------------------------------------------------------------------------------


def test_the_last_words_tell_the_best_lds_with_its_ceiling_before_held_out_gains(tmp_path, monkeypatch):
    folder = tmp_path / "results/mine/smollm2/tables"
    folder.mkdir(parents=True)
    for name, table in truths.tables().items():
        table.to_csv(folder / f"{name}.csv", index=False)
    gains = pd.DataFrame(
        [("smollm2", "all", "icp", ">0.8", "tasks", "overall", "all", 24, 3.2, 3.3, 0.1, 0.05, 0.15)],
        columns=[
            *(
                "model",
                "domain",
                "method",
                "bin",
                "set",
                "subset",
                "seed",
                "n",
                "nll",
                "nll_base",
                "gain",
                "low",
                "high",
            )
        ],
    )
    gains.to_csv(folder / "held_out.csv", index=False)
    monkeypatch.chdir(tmp_path)
    said = " ".join(terminal_summary.summary("mine", ["smollm2"], tracked=False).split())
    first = "LDS: influence_log predicts retraining best: 0.48 [0.35, 0.61] of a ceiling of 0.62 [0.52, 0.72]"
    assert said.index("AUC of planted") < said.index(first) < said.index("Held-out gain")
    assert "64 subsets × 2 seeds tell influence_log apart from" in said
    unplanned = terminal_summary.summary(
        "mine", ["smollm2"], tracked=False, made=["results/mine/smollm2/tables/held_out.csv"]
    )
    assert "LDS" not in unplanned


def test_the_headline_is_the_best_methods_lds_and_no_rivals():
    found = headline.of_lds(truths.lds({**truths.PREDICTED, "response tokens": 0.9}))
    assert found["lds_best"] == "influence_log"
    assert [found[name] for name in ("lds", "lds_low", "lds_high", "ceiling")] == [0.48, 0.35, 0.61, 0.62]
    assert found["lds/influence"] == 0.42
    assert found["lds/eval/influence"] == 0.21
    assert "lds/random" not in found
    assert "ceiling" not in headline.of_lds(truths.lds(seeds=1))
    assert "lds" not in headline.of_lds(truths.lds({"random": np.nan}))
    losses = {"removal/icp": 0.3, "removal/influence": 1.25, "removal/length": -2.0}
    assert headline.of_removal(truths.removal()) == losses
    assert headline.of_lds(truths.leave_one_out(), "leave_one_out")["leave_one_out/influence"] == 0.25


# --- the frontier -------------------------------------------------------------------------------------------------


def test_the_frontier_is_the_least_cost_for_at_least_that_agreement():
    rng = np.random.default_rng(0)
    cost, value = pd.Series(rng.integers(1, 8, 60) * 1.0), pd.Series(rng.integers(0, 6, 60) / 10)
    cost[3], value[5] = np.nan, np.nan
    found = pareto(cost, value)
    for k in cost.index:
        others = [i for i in cost.index.dropna() if cost[i] == cost[i] and value[i] == value[i]]
        beaten = any(
            cost[i] <= cost[k] and value[i] >= value[k] and (cost[i] < cost[k] or value[i] > value[k]) for i in others
        )
        assert found[k] == (cost[k] == cost[k] and value[k] == value[k] and not beaten), k


def made_frontier(seconds=None, counted=None):
    seconds = seconds or {"icp": 100.0, "influence": 40.0, "influence_log": 40.0, "one_step": 300.0, "random": 1.0}
    counted = counted or {"icp": 5e12, "influence": 2e12, "influence_log": 2e12, "one_step": 9e12, "random": 0.0}
    table = frontier(agreements(truths.tables()), seconds, counted | dict.fromkeys(truths.RIVALS, 0.0))
    return table.assign(model="smollm2")


def test_every_truth_is_on_the_frontier_table_and_rivals_limit_nobody():
    table = made_frontier()
    assert list(dict.fromkeys(table["truth"])) == ["lds", "leave_one_out", "removal", "tail_patch", "auc planted"]
    lds = table[table["truth"] == "lds"].set_index("method")
    assert lds["value"].to_dict() == pytest.approx(truths.PREDICTED, nan_ok=True)
    assert lds.index[lds["pareto"]].tolist() == ["influence_log"]
    assert lds.loc[list(truths.RIVALS), "seconds"].isna().all()
    assert (lds.loc["icp", ["low", "high", "ceiling"]] == [0.18 - 0.13, 0.18 + 0.13, 0.62]).all()
    auc = table[table["truth"] == "auc planted"].set_index("method")
    assert auc.index[auc["pareto"]].tolist() == ["influence", "random"]
    patch = table[table["truth"] == "tail_patch"].set_index("method")["value"]
    assert patch.to_dict() == {"icp": 0.5, "influence": 1.5}, "of 10 best, not of a tenth"


def test_a_method_of_unknown_cost_stands_in_the_table_and_not_in_the_figure():
    seconds = {"icp": 100.0, "influence_log": 40.0}
    table = made_frontier(seconds, {"icp": 5e12})
    assert not table.loc[table["method"] == "influence", ["pareto", "pareto_operations"]].any(axis=None)
    figure = frontier_points(table, known=METHODS)
    labels = {text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]}
    assert labels == {"icp", "influence_log", "best for its cost", "ceiling", *(f"counting {r}" for r in truths.RIVALS)}
    specification = charts.frontier(table[~table["method"].isin(truths.RIVALS)], METHODS, "smollm2")
    drawn = {row["method"] for rows in specification["datasets"].values() for row in rows}
    assert drawn == {"icp", "influence_log"}
    legends = [legend for legend in _under("legend", specification) if legend and "orient" in legend]
    assert legends
    assert all(legend["columns"] == charts.COLUMNS for legend in legends), "twenty names run past the page"


def _under(key, node):
    """What stands under a key anywhere in a specification."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == key:
            yield value
        else:
            yield from _under(key, value)


def test_the_figure_has_a_row_for_each_truth_and_joins_the_frontier():
    table = made_frontier()
    figure = frontier_points(table, known=METHODS)
    assert [axes.get_ylabel().replace("\n", " ") for axes in figure.axes[::2]] == [
        words(truth) for truth in dict.fromkeys(table["truth"])
    ]
    (stairs,) = [line for line in figure.axes[8].lines if line.get_label() == "best for its cost"]
    assert stairs.get_xydata().tolist() == [[1.0, 0.5], [40.0, 0.7]]
    assert frontier_points(table[:0]).axes, "no agreement at all is a figure that says so"


def test_the_chart_is_on_the_page_with_a_choice_of_truths(tmp_path):
    text = section(page(tmp_path, frontier=made_frontier()))
    assert 'id="frontier-0"' in text
    assert re.findall(r'<option value="([^"]*)">', text) == list(dict.fromkeys(made_frontier()["truth"]))


def test_tokens_of_tasks_are_counted_at_the_rate_of_the_examples():
    train = pd.DataFrame({"instruction": ["abcd", "ab"], "input": [None, "ab"], "output": ["ab", "ab"]})
    tasks = train.iloc[:1]
    lengths = pd.DataFrame({"id": ["a", "b"], "n_query": [3, 5], "n_target": [1, 3]})
    assert tokens(lengths, train, tasks) == (12.0, 6.0)
    # Of a conversation, all that is said.
    said = [["abcdefgh", "abcdefgh", "ab", "ab"], ["ab", "ab"]]
    roles = itertools.cycle(["user", "assistant"])
    talks = [json.dumps([{"role": next(roles), "content": text} for text in texts]) for texts in said]
    of_last = {"instruction": ["ab", "ab"], "input": [None, None], "output": ["ab", "ab"]}
    train = pd.DataFrame({"messages": talks, **of_last})
    assert tokens(lengths, train, train.iloc[1:]) == (12.0, 2.0)


def test_operations_are_counted_as_the_shards_are():
    sizes = {"parameters": 10.0, "examples": 3, "example_tokens": 15, "tasks": 2, "task_tokens": 8}
    sizes["response_tokens"] = 6
    assert operations("one_step", **sizes) == work.operations(10.0, 3, 15, 8)
    assert operations("icp", **sizes) == 2 * 10 * (15 + 3 * 8)
    assert operations("icp_budget", **sizes, tried=0.5) == 2 * 10 * (15 + 3 * 8 / 2)
    assert operations("influence", **sizes) == 6 * 10 * (15 + 8) + 2 * 10 * 3 * 2
    assert operations("influence_log", **sizes) == operations("influence", **sizes)
    assert operations("cosine", **sizes, share=0.5) == 5 * 10 * (15 + 8) + 10 * 3 * 2
    assert operations("self_influence", **sizes, share=0.5) == 5 * 10 * 15
    assert operations("tracin", **sizes, checkpoints=3) == 3 * operations("influence", **sizes)
    less = {"checkpoints": 3, "adapters": 0.5, "share": 0.5}
    passes = (4 * 10 + 5 * 0.5) * (15 + 8)
    assert operations("less", **sizes, **less) == 3 * (passes + 2 * 0.25 * 3 * 2)
    assert operations("less", **sizes, **less, dimension=7) == 3 * (passes + 2 * 7 * (0.25 * (3 + 2) + 3 * 2))
    curved = 16 * 10 * 15 + 6 * 10 * 8 + 5 * 7 * 15 + 2 * 7 * 8 + 9 * 11 + 2 * 10 * 3 * (2 + 1)
    assert operations("influence_ekfac", **sizes, squares=7, cubes=11) == curved
    assert operations("influence_mean", **sizes) == 6 * 10 * (15 + 8)
    assert operations("icp_reverse", **sizes, read={"icp_reverse": 38}) == 2 * 10 * 38
    assert operations("embedding", **sizes) == 2 * 10 * (15 + 8)
    assert operations("perplexity", **sizes) == 2 * 10 * 15
    assert operations("ifd", **sizes) == 2 * 10 * (15 + 6)
    free = ("length", "random", "bm25", *truths.RIVALS)
    assert [operations(name, **sizes) for name in free] == [0] * len(free)
    assert np.isnan(operations("of_others", **sizes))


# --- the workflow -------------------------------------------------------------------------------------------------


def test_the_page_and_the_frontier_are_made_by_truth_and_by_all_where_it_includes_them(tmp_path):
    project = dag.new(tmp_path)

    def made(target, **truth):
        ended = project.snakemake(target, "-n", config={"truth": truth, "finetune": {"dtype": "float32"}})
        assert ended.returncode == 0, ended.output
        return ended.jobs.keys() & {"retrain", "frontier", "plot_truth", "report_truth", "report"}

    assert made("truth", subsets=4) == {"retrain", "frontier", "plot_truth", "report_truth"}
    assert made("all", subsets=4) == {"report"}
    assert made("all", subsets=4, in_all=True) == {"retrain", "frontier", "plot_truth", "report"}
    assert made("truth") == set()


def test_a_tail_patch_per_token_says_so_wherever_it_stands(tmp_path):
    patch = truths.tables()["tail_patch"].assign(unit="nats per token")
    text = section(page(tmp_path, tail_patch=patch))
    heads, _ = table_of(text)
    assert "Tail patch nats per token, mean over tasks 10 best examples" in heads
    assert text.count("nats per token") >= 4
    figure = frontier_points(
        frontier(agreements({"tail_patch": patch}), {"icp": 1.0}, {}), tail_patch_unit="nats per token"
    )
    assert figure.axes[0].get_ylabel().replace("\n", " ") == "tail patch, 10 best (nats per token)"


def test_a_frontier_of_methods_of_unknown_cost_is_drawn_and_says_so():
    removal = truths.tables()["removal"]
    figure = frontier_points(frontier(agreements({"removal": removal}), {}, {}))
    assert all("No method's cost is known" in axes.get_title(loc="left") + axes.get_title() for axes in figure.axes)


def test_an_order_of_too_few_subsets_is_not_called_a_finding():
    rows = headline.of_set(truths.lds()).assign(low=np.nan, high=np.nan, n_subsets=3)
    assert "There is no interval of 3 subsets: this order may be chance" in " ".join(verdicts.verdict(rows))


def test_removals_whose_random_ones_are_alike_are_not_judged():
    table = truths.tables()["removal"].assign(p_value=np.nan, p_value_holm=np.nan)
    assert verdicts.removal(table).startswith("The random removals cost the tasks alike")


def test_an_auc_over_fewer_examples_says_so(tmp_path):
    aucs = truths.label_aucs()
    aucs.loc[aucs["method"] == "icp", "n_negative"] = 4
    text = plain(section(page(tmp_path, label_aucs=aucs)))
    assert "Of icp over the fewer examples that it has values for." in text
    assert "over the fewer examples" not in plain(section(page(tmp_path)))

"""What was asked and what was found, in sentences for people who have not read the paper, made from the tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from icprobe.analysis import binning, headline
from icprobe.analysis.correlations import fisher_interval
from icprobe.evaluation.tabulation import SIGNIFICANT
from icprobe.evaluation.win_rates import FEWEST
from icprobe.formatting import bin_label, bin_text, bound, count, estimate, fixed, number, parse_bin
from icprobe.paths import SELECTED
from icprobe.report import gains, label_sentences
from icprobe.report.findings import Findings
from icprobe.report.label_sentences import FEW_EXAMPLES, is_length, undecided
from icprobe.report.truth import is_retrained
from icprobe.report.wording import compared, every, listed, many


class Finding(NamedTuple):
    """A question that the tables of a model answer, and the answer."""

    question: str
    sentences: list[str]


def theta(model: str, manifest: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> str:
    """Which of a model's weights gradients are taken over, by its manifest and by what `check_parameters` found."""
    named = [f"{name} ({100 * part:.1f}%)" for name, part in manifest["left_out"].items()]
    without = f"; {listed(named)} {'is' if len(named) == 1 else 'are'} no part of them" if named else ""
    of = f", {chosen['layers']} of its {chosen['of_layers']} linear layers" if chosen else ""
    share = 100 * (chosen["share"] if chosen else manifest["attributed_share"])
    shown = f"{share:.1f}" if share <= 99.9 or share == 100 else f"{share:.2f}"  # 100.0 would be all
    return f"Gradients of {model} are taken over {shown}% of the weights of its blocks{of}{without}."


def bins(models: Sequence[Findings], n_examples: int, units: Mapping[str, str]) -> list[str]:
    """What a bin is, by the bins that the tables of these models name; nothing where they name none.

    units: method -> what its score counts.
    """
    tables = [table for model in models for table in (model.bins, model.overlaps, model.win_rates) if table is not None]
    names = dict.fromkeys(bin_text(str(name)) for table in tables for name in table["bin"])
    names = [name for name in names if name not in (headline.ALL, SELECTED)]
    cut = [name for name in names if parse_bin(name).is_threshold]
    shares = [name for name in names if name not in cut]
    sentences = ["A bin is a part of the training examples, chosen by a method's score."] if names else []
    if cut:
        above = [name for name in cut if name.startswith(">")]
        name = (above or cut)[0]
        limit = f"{'above' if above else 'at most'} {parse_bin(name).number:g}"
        unit = f" ({units['icp']})" if "icp" in units else ""
        sentences.append(
            f"icp's bin {name} holds the examples whose icp score{unit} is {limit}. The bin {name} of another method "
            f"holds the same number of examples, its own {'best' if above else 'worst'} ones, so that methods are "
            "compared on bins of equal size, whatever their units."
        )
    if shares:
        sentences.append(
            f"A bin such as {shares[0]} holds that part of the method's own ranking of the examples, whatever its unit."
        )
    for model in models:
        chosen = pd.DataFrame() if model.overlaps is None else headline.strictest_bin(model.overlaps)
        if len(chosen):
            of = f" of {model.name}" if len(models) > 1 else ""
            size = f"{count(headline.size_of_strictest(chosen, model.bins))} of the {count(n_examples)} examples"
            sentences.append(f"The bin {bin_label(chosen['bin'].iloc[0])}{of} has {size}.")
        sentences += coarse(model.bins)
    return sentences


def coarse(bins: pd.DataFrame | None) -> list[str]:
    """Which bins end among examples of one score, in one sentence. bins: as `binning.borders` makes it."""
    rows = [] if bins is None else binning.decided_by_ties(bins).itertuples()
    told = [
        f"{row.method} {bin_label(row.bin)} ({count(row.n_tied_inside)} of its {count(row.n)} share a score with "
        f"{count(row.n_tied - row.n_tied_inside)} outside)"
        for row in rows
    ]
    if not told:
        return []
    return [
        f"Ties decide which examples are in {listed(told)}. Equal scores are ordered by mean effect, then by "
        "id; a score that is a share of tasks takes more values with more tasks."
    ]


def found(
    model: Findings, sound_labels: Mapping[str, Sequence[str]], labels_of_rows: Sequence[str] = ()
) -> list[Finding]:
    """What the tables of a model say, question by question; one sentence where there is nothing to compare."""
    findings = []
    cautions = [
        ("Which scores are too coarse to rank the examples?", model.ties),
        ("Does one task decide a method's scores?", model.decided_by_one),
    ]
    first = [Finding(question, sentences) for question, sentences in cautions if sentences]
    for label, rows in (
        [] if model.aucs is None else headline.good_against_others(model.aucs).groupby("label", sort=False)
    ):
        good = listed(map(str, sound_labels.get(label, [])), "or") or "good"
        question = f"Which methods tell examples whose {label} is {good} from the others?"
        differences = model.auc_differences
        own = None if differences is None else differences[differences["label"] == label]
        sentences = label_sentences.labels(str(label), good, rows, own, model.baselines)
        sentences += label_sentences.among_the_lowest(model.lowest(str(label), sound_labels.get(label, [])), good)
        findings.append(Finding(question, sentences))
    if model.held_out is not None and (sentences := gains.held_out_sentences(model)):
        findings.append(Finding("Does training make held-out answers likelier?", sentences))
    rows = [] if model.win_rates is None else [row for row in model.win_rate_rows(overall=True) if row.n > 0]
    if rows:
        judged, prompts = pd.DataFrame(rows), max(row.n_prompts for row in rows)
        sentences = [*against_base(judged, prompts), *against_each_other(judged, model.differences, prompts)]
        findings.append(Finding("Which bin trains the better model?", sentences))
    if model.correlations is not None and (sentences := agreement(model.correlations)):
        findings.append(Finding("Do icp and influence agree?", sentences))
    if model.label_correlations is not None:
        rows = headline.over_all_tasks(model.label_correlations).query("statistic == 'spearman'")
        for label, of_label in rows.groupby("label", sort=False):
            findings.append(Finding(f"Do the scores go with {label}?", label_sentences.numbers(str(label), of_label)))
    numeric = set() if model.label_correlations is None else set(model.label_correlations["label"])
    if unmarked := [label for label in labels_of_rows if label not in {*sound_labels, *numeric}]:
        key = f"data: {{sound_labels: {{{unmarked[0]}: [a good value]}}}}"
        findings.append(
            Finding(
                f"What about {listed(unmarked)}?",
                [f"Nothing says which values are good, so no method is compared with them. To compare, write {key}."],
            )
        )
    if findings:
        return [*first, *findings]
    sentences = [
        f"The {method} scores run from {number(scores.min())} to {number(scores.max())}, with their median at "
        f"{number(scores.median())}."
        for method, scores in model.scores.items()
        if scores.notna().any()
    ]
    sentences += _with_length(model)
    of_labels = "labels (data.labels and data.sound_labels)"
    sentences.append(
        f"Nothing here holds the scores against {of_labels}; the next section says what retraining does."
        if is_retrained(model)
        else f"Nothing here holds the scores against {of_labels} or against full trainings (finetune, truth)."
    )
    if model.correlations is not None:
        sentences.append("The table of correlations shows how far the methods agree with each other.")
    return [*first, Finding("What do the scores say?", sentences)]


def _with_length(model: Findings) -> list[str]:
    """How far each method's ranking is that by response length."""
    if model.lengths is None:
        return []
    told = []
    for method, scores in model.scores.items():
        both = pd.DataFrame({"score": scores, "tokens": model.lengths["n_target"]}).dropna().astype(float)
        if len(both) < FEW_EXAMPLES or both.nunique().min() < 2 or is_length(method, model.baselines):
            continue
        value = float(both["score"].corr(both["tokens"], method="spearman"))
        told.append(f"{method} {estimate(value, *fisher_interval('spearman', value, len(both)))}")
    if not told:
        return []
    return [
        f"Spearman correlation of the scores with response length, with its 95% interval: {listed(told)}. Above 0, "
        "longer responses score higher."
    ]


def against_base(judged: pd.DataFrame, prompts: int) -> list[str]:
    """Which fine-tuned models win against the base model. judged: win rates over all prompts and seeds."""
    sentences = [
        f"{many(len(judged), 'fine-tuned model')} answered {many(prompts, 'prompt')}, and a judge compared each "
        "answer with the base model's. At a win rate of 50% neither is preferred."
    ]
    if prompts < FEWEST:
        return [*sentences, f"{many(prompts, 'prompt')} cannot tell better from worse."]
    better, worse = judged[judged["low"] > 50], judged[judged["high"] < 50]
    for rows, verb in ((better, "wins against"), (worse, "loses to")):
        if len(rows):
            names = listed(map(_win_rate, rows.itertuples()))
            sentences.append(f"Training on {names} {verb} the base model beyond chance.")
    if left := len(judged) - len(better) - len(worse):
        models = f"the other {many(left, 'model')}" if left < len(judged) else every(left, "model")
        one = left == 1
        sentences.append(
            f"The interval{'' if one else 's'} of {models} include{'s' if one else ''} 50%, so whether "
            f"{'it is' if one else 'they are'} better or worse than the base model is open."
        )
    return sentences


def against_each_other(judged: pd.DataFrame, differences: pd.DataFrame | None, prompts: int) -> list[str]:
    """Whether the prompts tell methods apart within a bin, and bins from each other."""
    sentences = []
    tested = pd.DataFrame() if differences is None else differences[differences["p_value_holm"].notna()]
    if len(tested):
        apart = tested[tested["p_value_holm"] < SIGNIFICANT]
        pairs = f"{many(len(tested), 'comparison')} of {compared(tested)}"
        if len(apart):
            told = [
                f"{row.method_a} against {row.method_b}{'' if row.bin == SELECTED else f' on {bin_label(row.bin)}'} "
                f"({fixed(row.difference, 1)} points)"
                for row in apart.itertuples()
            ]
            sentences.append(f"Of {pairs}, these differ significantly (sign-flip test, Holm, 5%): {listed(told)}.")
        else:
            better = "of them chooses better" if SELECTED in {*tested["bin"]} else "method chooses the better bin"
            reach = fixed((tested["high"] - tested["low"]).median() / 2, 0)
            sentences.append(
                f"No difference is significant in {pairs} (sign-flip test, Holm, 5%), so {many(prompts, 'prompt')} "
                f"cannot decide which {better}. The intervals of the differences extend about "
                f"{reach} points to either side; a smaller difference does not show."
            )
    of_bins = judged[(judged["bin"] != headline.ALL) & judged["low"].notna()]
    if len(of_bins) > 1:
        highest, lowest = of_bins.loc[of_bins["low"].idxmax()], of_bins.loc[of_bins["high"].idxmin()]
        if highest.low > lowest.high:
            sentences.append(f"The interval of {_win_rate(highest)} is wholly above that of {_win_rate(lowest)}.")
        else:
            sentences.append(
                f"The intervals of {every(len(of_bins), 'bin')} overlap (they share {fixed(highest.low, 0)} to "
                f"{fixed(lowest.high, 0)}%), so they alone do not show that one bin is better than another."
            )
    return sentences


def agreement(correlations: pd.DataFrame) -> list[str]:
    """The correlation of icp and influence in words, with what its interval says; nothing where there is none."""
    rows = headline.agreement(correlations)
    if "spearman" not in rows:
        return []
    plain, partial = rows["spearman"], rows.get("spearman_partial_length")
    if plain.value != plain.value:
        return ["The correlation of icp and influence is undefined because one of the two scores is constant."]
    sentences = [
        f"Over {many(plain.n, 'example')}, icp and influence have a Spearman correlation of "
        f"{fixed(plain.value)} (95% interval {bound(plain.low)} to {bound(plain.high)}, {plain.interval}). "
        + _reading(plain, "the two methods rank examples"),
        "At 1 the rankings are the same, at 0 one says nothing about the other, at −1 they are opposite.",
    ]
    if partial is not None and partial.value == partial.value:
        sentences.append(
            f"Given response length it is {fixed(partial.value)} (95% interval {bound(partial.low)} to "
            f"{bound(partial.high)}). " + _reading(partial, "among responses of equal length they still rank")
        )
    return sentences


def _reading(row: Any, what: str) -> str:
    """What an interval says about 0, in a sentence."""
    if row.low != row.low or row.high != row.high:
        return "Its interval is undefined."
    if row.n < FEW_EXAMPLES:
        return undecided(row.n)
    if row.low > 0:
        return f"The interval excludes 0: {what} more alike than chance would."
    if row.high < 0:
        return f"The whole interval is below 0: {what} in opposite order."
    return "The interval includes 0: these examples do not distinguish it from no correlation at all."


def _win_rate(row: Any) -> str:
    name = bin_label(row.bin) if row.bin == headline.ALL else f"{row.method} {bin_label(row.bin)}"
    return f"{name} ({fixed(row.win_rate, 0)}% [{fixed(row.low, 0)}, {fixed(row.high, 0)}])"

"""The table that holds every method's scores, and what can be asked of it: correlations, and the rows of a bin."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.analysis.binning import members, ranks
from icprobe.analysis.correlations import correlations
from icprobe.analysis.statistics import widen
from icprobe.config.types import slice_of
from icprobe.errors import ConfigError, ScoreError, reason, several, shown
from icprobe.formatting import parse_bin
from icprobe.notebook.configuring import arguments_named, configured, mapping
from icprobe.tables.checking import TEXTS
from icprobe.tables.conversations import HELD
from icprobe.texts.chat import prompts_of
from icprobe.texts.conversations import is_plain
from icprobe.training.subsets import write_subset

SCORE = "score_"  # what the column of a method's scores begins with


def scores_table(train: pd.DataFrame, lengths: pd.DataFrame, scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Puts every method's scores beside their examples, in train's order.

    train: `id`, texts, labels [N]; lengths: `id`, `n_query`, `n_target` in tokens; scores: method -> `id`, `score` and
    what else it says of each example [N]. Returns these columns, each of a method's with its name behind (`score_icp`),
    and `rank_icp`: 1 is the best, equal scores share the rank of the first of them. Raises ScoreError where the
    examples differ.
    """
    ids = pd.Index(train["id"])
    columns = {name: lengths.set_index("id")[name].reindex(ids) for name in ("n_query", "n_target")}
    for method, table in scores.items():
        of_method = table.set_index("id")
        if len(of_method) != len(ids) or not of_method.index.isin(ids).all():
            raise ScoreError(
                f"The scores of {method} ({len(of_method)} examples) are not of the {len(ids)} training examples. "
                "Compute them again, or leave the method out."
            )
        columns |= {f"{name}_{method}": of_method[name].reindex(ids) for name in of_method}
        columns[f"rank_{method}"] = ranks(columns[_score(method)]).astype("Int64")
    return train.assign(**{name: column.array for name, column in columns.items()})


@arguments_named("analysis")
def correlate(
    scores: pd.DataFrame, methods: Sequence[str] | None = None, *, seed: int = 0, **analysis: Any
) -> pd.DataFrame:
    """Correlates every pair of methods: the table of `tables/correlations.csv`, each value with its 95% interval.

    - scores: what `icprobe.value` or `icprobe.load(…).scores()` gives.
    - methods: which of its columns (default: all methods).
    - seed: of the bootstrap.
    - analysis: keys of the configuration's section `analysis`, such as `resamples`.

    Returns `method_a`, `method_b`, `statistic` (spearman, pearson, kendall, spearman_partial_length), `value`, `low`,
    `high`, `interval`, `n`. Raises ScoreError for a method that has no column.
    """
    settings = slice_of(configured(analysis=analysis, seed=seed).analysis, "resamples", "analytic_above")
    scores = _checked(scores)
    if methods is not None and not isinstance(methods, Iterable):
        raise ConfigError(f"methods: a list of names is needed, such as ['icp', 'influence'], not {shown(methods)}")
    methods = methods_of(scores) if methods is None else [methods] if isinstance(methods, str) else [*methods]
    if len(methods) < 2:
        raise ScoreError(
            "To correlate, a table needs the scores of two methods or more. Of one method with "
            'response length: scores[["score_influence", "n_target"]].corr("spearman").'
        )
    by_id = scores.set_index("id")
    sets = {method: _of_method(by_id, method) for method in methods}
    lengths = _numbers(by_id["n_target"], "The values of n_target") if "n_target" in by_id else None
    known = lengths is not None and lengths.notna().all()
    return correlations(sets, lengths if known else None, seed=seed, **settings)


def select(scores: pd.DataFrame, method: str, bin: str) -> pd.DataFrame:
    """Takes the rows of a method's bin, best fitting first.

    - scores: as `correlate` takes it.
    - method: whose scores order the rows.
    - bin: `"top 20%"`, `"bottom 5%"` (a share of all examples), `"top 1000"` (so many), or one of ICP's thresholds,
      such as `">0.8"`. For any other method such a threshold takes as many rows as ICP has there, so that the table
      needs the scores of icp.

    Equal scores at the bin's border go by mean effect, where the table has it, then by id. Raises ConfigError where the
    bin cannot be read, ScoreError where it holds more rows than the method has scored.
    """
    if not isinstance(bin, str):
        raise ConfigError(f'select: a bin is a text such as "top 5" or "top 20%", not {shown(bin)}')
    scores = _checked(scores)
    ids = members(_ranked(scores, method), bin, _ranked(scores, "icp") if parse_bin(bin).is_threshold else None)
    return scores.iloc[pd.Index(scores["id"]).get_indexer(ids)].reset_index(drop=True)


def export(
    rows: pd.DataFrame, path: str | Path, method: str | None = None, templates: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Writes rows of a table, such as `select` gives, as two files that trainers take; returns the paths of both.

    - rows: as `select` or `value` returns them, or as pandas has read them back from a file; their order is kept.
    - path: ends with `.jsonl`; that file holds `prompt` and `completion`. Beside it, with `.messages.jsonl` for
      `.jsonl`, stand the same rows as `messages`.
    - method: whose score stands beside each row.
    - templates: keys of the configuration's section. Without them, conversations that no Jinja template reads whole are
      messages in both files.

    Both files are those of the workflow's subsets (`training.subsets.write_subset`). Raises ConfigError for another
    ending, ScoreError for rows that lack a text or appear twice.
    """
    path = Path(path).expanduser()
    if path.suffix != ".jsonl":
        raise ConfigError(f"export: {shown(str(path))} does not end with .jsonl, as JSON Lines do; name it so")
    beside = path.with_suffix(".messages.jsonl")
    rows = _texts_of(_checked(rows))
    talks = "messages" in rows and not all(map(is_plain, rows["messages"], rows.get("tools", [None] * len(rows))))
    config = configured(templates=mapping("templates", templates) or ({"format": "chat"} if talks else {}))
    prompts = prompts_of({**config.templates.model_dump(), "special_tokens": config.data.special_tokens})
    by_id = rows.set_index("id", drop=False)
    score = {} if method is None else _of_method(by_id, method).to_dict()
    write_subset(by_id, rows["id"].tolist(), score, prompts, path, beside)
    return path, beside


def _checked(rows: pd.DataFrame) -> pd.DataFrame:
    """Takes a table whose rows have an id each. Raises ScoreError for what is none, and for rows that appear twice."""
    if not isinstance(rows, pd.DataFrame):
        raise ScoreError(f"A table (a DataFrame) is needed, as icprobe.value gives it, not a {type(rows).__name__}.")
    if "id" not in rows and "id" in rows.index.names:
        rows = rows.reset_index("id")
    if "id" not in rows:
        raise ScoreError("The table has no column id; give what icprobe.value or icprobe.load(…).scores() gave.")
    if rows["id"].isna().any():
        raise ScoreError("The table has a row without an id; where pandas has read it, use keep_default_na=False.")
    if (doubled := rows["id"][rows["id"].map(str).duplicated()]).size:
        raise ScoreError(f"The id {shown(doubled.iloc[0])} appears twice in the table; keep one row for each example.")
    return rows


def _texts_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Gives rows whose ids and texts are texts, as pandas does not read them back: an empty input is NaN in a CSV file.

    Raises ScoreError for a text that is none.
    """
    texts = {}
    for name in TEXTS:
        if name not in rows and name != "input":
            raise ScoreError(
                f"The table has no column {name}, which trainers need; take the rows of a table that has it."
            )
        texts[name] = rows[name].astype(object) if name in rows else pd.Series("", rows.index)
        if name == "input":
            texts[name] = texts[name].where(texts[name].notna(), "")
        if wrong := [value for value in texts[name] if not isinstance(value, str)]:
            raise ScoreError(
                f"The column {name} holds {shown(wrong[0])} ({type(wrong[0]).__name__}), not a text; where pandas has "
                "read it from a CSV file, read that with dtype=str, keep_default_na=False."
            )
    held = {name: rows[name].astype(object).where(rows[name].notna(), None) for name in HELD if name in rows}
    return rows.assign(id=rows["id"].map(str), **texts, **held)


def methods_of(scores: pd.DataFrame) -> list[str]:
    """Finds the methods that a table has scores of."""
    return [name.removeprefix(SCORE) for name in scores if str(name).startswith(SCORE)]


def _score(method: str) -> str:
    return f"{SCORE}{method}"


def _of_method(scores: pd.DataFrame, method: str) -> pd.Series:
    """Takes a method's scores [N] from a table, which may have been read as texts. Raises ScoreError for infinite ones
    and for what are none.
    """
    if _score(method) not in scores:
        known = ", ".join(methods_of(scores)) or "no method"
        raise ScoreError(f"There are no scores of {shown(method)}; the table has those of {known}.")
    values = _numbers(scores[_score(method)], f"The scores of {method}")
    if (infinite := values.isin([np.inf, -np.inf])).any():
        raise ScoreError(f"The scores of {method} are infinite in {several(infinite.sum(), 'row')}; correct these.")
    return values


def _ranked(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    """Takes what orders a method's examples: `id`, `score` and, where the table has it, `mean_effect`."""
    table = scores[["id"]].assign(score=_of_method(scores, method))
    effect = f"mean_effect_{method}"
    return table.assign(mean_effect=_numbers(scores[effect], f"The values of {effect}")) if effect in scores else table


def _numbers(values: pd.Series, what: str) -> pd.Series:
    """A column [N] as float64, whatever pandas has read it as; narrower floats widen by their shortest decimal, so that
    what is on a threshold stays on it. Raises ScoreError where it holds other than numbers.
    """
    if pd.api.types.is_float_dtype(values):
        width = {2: np.float16, 4: np.float32}.get(values.dtype.itemsize, np.float64)
        return pd.Series(widen(values.to_numpy(dtype=width, na_value=np.nan)), values.index)
    try:
        return values.map(lambda value: np.nan if pd.isna(value) or value == "" else float(value)).astype(float)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"{what} are not all numbers ({reason(error)}).") from None

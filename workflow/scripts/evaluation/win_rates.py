"""The tables of win rates and of the differences between methods: as CSV, and the first as Markdown and LaTeX, too."""

import logging

import pandas as pd

from icprobe import artifacts, jsonl
from icprobe.analysis import headline
from icprobe.evaluation.judges.annotations import check_reference
from icprobe.evaluation.length_control import LENGTH_COLUMNS, with_length_control
from icprobe.evaluation.tabulation import latex, markdown
from icprobe.evaluation.win_rates import paired_differences, win_rate_table
from icprobe.workflow.jobs import job

COLUMNS = ["method", "bin", "subset", "seed", "id", "preference", *LENGTH_COLUMNS]

with job(snakemake) as run:
    conditions = [tuple(condition) for condition in snakemake.params.conditions]
    read = {condition: jsonl.read(path) for condition, path in zip(conditions, snakemake.input, strict=True)}
    check_reference({f"{method}, bin {bin}, seed {seed}": judged for (method, bin, seed), judged in read.items()})
    rows = [
        {"method": method, "bin": bin, "seed": seed, **row}
        for (method, bin, seed), judged in read.items()
        for row in judged
    ]
    numbers = dict.fromkeys(["preference", *LENGTH_COLUMNS], "float64")
    judgements = pd.DataFrame(rows, columns=COLUMNS).astype(numbers)
    table = with_length_control(win_rate_table(judgements, conditions), judgements)
    differences = paired_differences(judgements)
    artifacts.write_text(snakemake.output.markdown, markdown(table, differences))
    artifacts.write_text(snakemake.output.latex, latex(table, differences))
    for path, found in ((snakemake.output.differences, differences), (snakemake.output.csv, table)):
        # Domains are those of tasks; prompts have subsets, and a model is fine-tuned by scores over all tasks.
        artifacts.write_csv(path, headline.named(found, snakemake.wildcards.model))
    tested = differences["p_value_holm"]
    logging.info("%d of %d differences are significant (Holm, 5%%)", (tested < 0.05).sum(), tested.notna().sum())
    run.table("win_rates", table)
    run.table("differences", differences)
    unreadable = int(judgements["preference"].isna().sum())
    run.summary(judgements=len(judgements), unreadable=unreadable, **headline.of_win_rates(table))

"""The win-rate table of one model, as CSV and as Markdown."""

import pandas as pd

from icprobe import artifacts, jsonl
from icprobe.jobs import job
from icprobe.win_rates import win_rate_table

COLUMNS = ["method", "bin", "subset", "seed", "id", "preference"]

with job(snakemake) as run:
    conditions = [tuple(condition) for condition in snakemake.params.conditions]
    rows = [
        {"method": method, "bin": bin, "seed": seed, **row}
        for (method, bin, seed), path in zip(conditions, snakemake.input, strict=True)
        for row in jsonl.read(path)
    ]
    judgements = pd.DataFrame(rows, columns=COLUMNS).astype({"preference": "float64"})
    table = win_rate_table(judgements, conditions)
    table.insert(0, "model", snakemake.wildcards.model)
    with artifacts.atomic_path(snakemake.output.csv) as path:
        table.to_csv(path, index=False, lineterminator="\n")
    shown = table[table["seed"].eq("all")].drop(columns="seed").astype(object)
    markdown = shown.where(shown.notna(), None).to_markdown(index=False, floatfmt=".1f", missingval="–")
    artifacts.write_text(snakemake.output.markdown, markdown + "\n")
    run.table("win_rates", table)
    run.summary(judgements=len(judgements), unreadable=int(judgements["preference"].isna().sum()))

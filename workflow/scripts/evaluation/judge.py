"""Judgements: for each eval prompt, the fine-tuned model's response against the base model's."""

import pandas as pd

from icprobe import jsonl
from icprobe.evaluation.judges import completed, judge, pair_up
from icprobe.tables import checking
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    settings = completed(snakemake.params.settings)
    table = pd.read_parquet(snakemake.input.prompts)
    prompts = checking.records(table)
    pairs = pair_up(prompts, jsonl.read(snakemake.input.base), jsonl.read(snakemake.input.responses))
    judgements = judge(settings["judge"], pairs, settings, cache=snakemake.params.cache)
    jsonl.write(judgements, snakemake.output[0])
    preferences = pd.Series([row["preference"] for row in judgements], dtype="float64")
    run.summary(
        judgements=len(judgements),
        unreadable=int(preferences.isna().sum()),
        win_rate=100 * (preferences.mean() - 1) if preferences.notna().any() else None,
    )

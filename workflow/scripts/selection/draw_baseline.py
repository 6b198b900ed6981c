"""Random examples that a selection is compared with, as files that trainers take."""

import logging

import pandas as pd

from icprobe import jsonl
from icprobe.analysis import selecting
from icprobe.tables.parquet import read_parquet
from icprobe.texts.chat import prompts_of
from icprobe.training.subsets import write_subset
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    examples, scores = pd.read_parquet(files.examples).set_index("id", drop=False), read_parquet(files.scores)
    lengths = selecting.lengths_of(files.lengths, examples["id"])
    chosen = examples.index.get_indexer([row["id"] for row in jsonl.read(files.chosen)])
    selection, kind = params.drawn["selection"], params.drawn["baseline"]
    drawn = selecting.baseline(selection, kind, chosen, examples.index, lengths, params.seed)
    score = scores.set_index("id")["score"].dropna().to_dict()
    prompts = prompts_of(params.templates)
    write_subset(examples, examples.index[drawn], score, prompts, snakemake.output.subset, snakemake.output.messages)
    tokens = "" if lengths is None else f"; {lengths[drawn].sum()} tokens against {lengths[chosen].sum()}"
    logging.info("%d of %d examples are drawn, to compare %d with%s", len(drawn), len(examples), len(chosen), tokens)
    run.summary(examples=len(drawn), of=len(examples))

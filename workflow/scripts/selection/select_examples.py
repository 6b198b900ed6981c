"""The examples that a selection chooses, as files that trainers take: prompts and completions, and messages."""

import logging

import pandas as pd

from icprobe.analysis import selecting
from icprobe.formatting import number
from icprobe.tables.parquet import read_parquet
from icprobe.texts.chat import prompts_of
from icprobe.training.subsets import write_subset
from icprobe.workflow.jobs import job

logger = logging.getLogger(__name__)

with job(snakemake) as run:
    files, rule, name = snakemake.input, snakemake.params.rule, snakemake.wildcards.method
    examples, scores = pd.read_parquet(files.examples).set_index("id", drop=False), read_parquet(files.scores)
    lengths = selecting.lengths_of(files.lengths, scores["id"])
    values = selecting.values_of(files.examples, rule, scores["id"])
    effects = selecting.effects_of(files.matrix, scores["id"]) if rule["per_task"] else ()
    vectors = selecting.vectors_of(files.vectors, examples.index.get_indexer(scores["id"])) if rule["diverse"] else None
    chosen = selecting.select(name, rule, scores, lengths, values, effects, vectors)
    score = scores.set_index("id")["score"].to_dict()
    ids, prompts = scores["id"].iloc[chosen].tolist(), prompts_of(snakemake.params.templates)
    write_subset(examples, ids, score, prompts, snakemake.output.subset, snakemake.output.messages)
    logger.info("%d of %d examples are chosen", len(chosen), len(examples))
    n_tied, inside = selecting.tied(scores["score"], chosen, lengths)
    if inside < n_tied and not any(rule[key] for key in ("per_task", "diverse", "match", "quota")):
        how = "by mean effect, then by id" if "mean_effect" in scores else "by id"
        border = number(scores["score"].iloc[chosen[-1]])
        logger.warning("%d of %d examples with the score %s are chosen, %s", inside, n_tied, border, how)
    run.summary(examples=len(chosen), of=len(examples))

"""The examples of one bin, best fitting first, as JSONL in Alpaca's fields plus id and score."""

import logging

import pandas as pd

from icprobe import data
from icprobe.binning import members, threshold_of
from icprobe.jobs import job

logger = logging.getLogger(__name__)

with job(snakemake) as run:
    examples = pd.read_parquet(snakemake.input.examples).set_index("id", drop=False)
    if snakemake.wildcards.method == "all":
        chosen, score = list(examples.index), {}
    else:
        scores, reference = (pd.read_parquet(snakemake.input[name]) for name in ("scores", "reference"))
        chosen = members(scores, threshold_of(snakemake.wildcards.bin), reference)
        score = scores.set_index("id")["score"].to_dict()
    texts = examples.loc[chosen, ["id", *data.TEXTS]]
    rows = data.records(texts)
    data.write_jsonl([{**row, "score": score.get(row["id"])} for row in rows], snakemake.output[0])
    logger.info("%d of %d examples are in the bin", len(rows), len(examples))
    run.summary(examples=len(rows), of=len(examples))
    run.table("examples", texts.assign(score=[score.get(row["id"]) for row in rows]))
    if score and rows:
        shared = set(chosen) & set(members(reference, threshold_of(snakemake.wildcards.bin), reference))
        run.summary(overlap=len(shared) / len(rows))

"""Checks that the eval prompts hold what the judge needs, before anything is trained."""

import logging

import pandas as pd

from icprobe.artifacts import write_json
from icprobe.errors import several, some
from icprobe.evaluation.judges import require_gold, require_some_base_response
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    judge = snakemake.params.judge
    prompts = pd.read_parquet(snakemake.input[0], columns=["id", "output"])
    if judge == "reference":
        require_gold(dict(zip(prompts["id"], prompts["output"], strict=True)))
    if snakemake.params.base_responses == "given":
        require_some_base_response(prompts["output"])
        silent = prompts.loc[prompts["output"].fillna("").str.strip() == "", "id"].tolist()
        if silent:
            logging.warning(
                "%s without an output, which counts as an empty response of the base model: %s",
                several(len(silent), "eval prompt"),
                some(silent),
            )
    write_json(snakemake.output[0], {"judge": judge, "prompts": len(prompts)})
    run.summary(prompts=len(prompts))

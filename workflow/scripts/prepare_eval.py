"""Reads the eval prompts and checks them."""

import logging

from icprobe import data
from icprobe.fitting import check_prompts
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    params = snakemake.params
    prompts = data.read_table(params.source, extra=["subset", "domain", "generator"], needs_output=False)
    from icprobe.tokenizing import reader

    check_prompts(
        prompts, Prompts(params.templates), [reader(path) for path in snakemake.input.models], params.max_new_tokens
    )
    data.write_parquet(prompts, snakemake.output[0])
    logging.info("%d eval prompts", len(prompts))
    run.summary(prompts=len(prompts))

"""Reads the eval prompts, samples, and checks them."""

import logging

from icprobe import data
from icprobe.fitting import check_prompts, draw
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    params = snakemake.params
    texts = Prompts(params.templates)
    table = data.read_table(params.source, extra=["subset", "domain", "generator"], needs_output=False)
    from icprobe.tokenizing import reader

    readers = [reader(path) for path in snakemake.input.models]
    prompts = draw(table, params.source["sample"], texts.query, readers[0], "data.eval.sample")
    check_prompts(prompts, texts, readers, params.max_new_tokens)
    data.write_parquet(prompts, snakemake.output[0])
    logging.info("%d prompts read, %d kept", len(table), len(prompts))
    run.summary(read=len(table), prompts=len(prompts))

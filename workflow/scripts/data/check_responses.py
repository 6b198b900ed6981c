"""Checks that of every response some token counts for ifd, before anything is measured."""

import logging

from icprobe.artifacts import write_json
from icprobe.tables import parquet
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    # transformers reads the environment that the job sets when it is imported.
    from icprobe.attribution.responses import both_ways, check_both_ways, responses
    from icprobe.texts.tokenizing import reader

    train, tokenizer = parquet.read_parquet(snakemake.input.train), reader(snakemake.input.model).tokenizer
    found = responses(train.to_dict("records"), prompts_of(snakemake.params.templates), tokenizer)
    check_both_ways(train["id"], [both_ways(example, tokenizer.bos_token_id)[0] for example in found])
    write_json(snakemake.output[0], {"examples": len(train)})
    logging.info("%d examples have a token of response that counts", len(train))
    run.summary(examples=len(train))

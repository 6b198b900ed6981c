"""The base model's responses, where the eval table gives them as its outputs."""

import logging

from icprobe import jsonl
from icprobe.tables import checking, parquet
from icprobe.texts.conversations import prompt_shown
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = parquet.read_parquet(snakemake.input.prompts)
    rows = checking.records(table)
    responses = [
        {
            "id": row["id"],
            "subset": row.get("subset"),
            "instruction": prompt_shown(row),
            "output": row["output"],
            "generator": row.get("generator") or snakemake.params.generator,
        }
        for row in rows
    ]
    jsonl.write(responses, snakemake.output[0])
    empty = sum(not row["output"].strip() for row in responses)
    logging.info("%d base responses, %d of them empty", len(responses), empty)
    run.summary(responses=len(responses), empty=empty)

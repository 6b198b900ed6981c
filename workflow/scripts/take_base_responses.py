"""The base model's responses, where the eval table gives them as its outputs."""

import logging

from icprobe import data
from icprobe.jobs import job
from icprobe.prompts import full_instruction

with job(snakemake) as run:
    table = data.read_parquet(snakemake.input.prompts)
    rows = data.records(table)
    responses = [
        {
            "id": row["id"],
            "subset": row.get("subset"),
            "instruction": full_instruction(row),
            "output": row["output"],
            "generator": row.get("generator") or snakemake.params.generator,
        }
        for row in rows
    ]
    data.write_jsonl(responses, snakemake.output[0])
    empty = sum(not row["output"].strip() for row in responses)
    logging.info("%d base responses, %d of them empty", len(responses), empty)
    run.summary(responses=len(responses), empty=empty)

"""Counts the tokens of each example whose loss fine-tuning minimises."""

import pandas as pd

from icprobe import artifacts
from icprobe.tables import parquet
from icprobe.tables.checking import records
from icprobe.texts.chat import prompts_of
from icprobe.texts.completions import learnt, longest, warn_of_cuts
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    train = parquet.read_parquet(files.train)
    counted = pd.array([pd.NA] * len(train), "Int32")  # without a model, nobody knows
    if files.model:
        from icprobe.texts.tokenizing import load_tokenizer

        length = longest(params.max_length, artifacts.read_manifest(files.model)["max_positions"])
        tokenizer, prompts = load_tokenizer(files.model), prompts_of(params.templates)
        # Data may be chosen for a training elsewhere by a model that could not be trained here.
        end = tokenizer.eos_token_id is not None
        found, counts = learnt(tokenizer, records(train), prompts, length, end)
        warn_of_cuts(len(train), counts, length)
        counted = pd.array(found, "Int32")
        run.summary(tokens=int(counted.sum()), **counts)
    parquet.write_parquet(pd.DataFrame({"id": train["id"], "n_learnt": counted}), snakemake.output[0])

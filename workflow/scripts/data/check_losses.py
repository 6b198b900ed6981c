"""Checks that every example has the loss that fine-tuning minimises, before any gradient is taken."""

import logging

from icprobe.artifacts import write_json
from icprobe.tables import parquet
from icprobe.texts.completions import check_end, check_trainable, longest
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    # transformers reads the environment that the job sets when it is imported.
    from icprobe.texts.tokenizing import reader

    lengths, model = parquet.read_parquet(snakemake.input.lengths), reader(snakemake.input.model)
    check_end(model.tokenizer, lengths)
    length = longest(snakemake.params.max_length, model.max_positions)
    check_trainable(lengths, length, snakemake.params.asked_by)
    # One token more than an example has: the end of sequence.
    cut = int((lengths["n_query"] + lengths["n_target"] + 1 > length).sum())
    write_json(snakemake.output[0], {"examples": len(lengths), "length": length, "cut": cut})
    logging.info(
        "%d examples have a loss; %d of them are cut off at %d tokens, as in training", len(lengths), cut, length
    )
    run.summary(examples=len(lengths), cut=cut)

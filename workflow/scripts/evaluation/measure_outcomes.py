"""Log-likelihoods of held-out answers by the base model and by each model fine-tuned from it, in one process."""

import logging
import shutil

from icprobe import artifacts
from icprobe.tables import parquet
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    # Torch reads the environment that the job sets when it is imported.
    from icprobe.evaluation.outcomes import held_out_answers, outcomes
    from icprobe.texts.tokenizing import load_tokenizer

    files, params = snakemake.input, snakemake.params
    tables = {name: parquet.read_parquet(files.get(name)) for name in params.sets}
    prompts = prompts_of(params.templates)
    limit = artifacts.read_manifest(files.base)["max_positions"]
    answers = held_out_answers(tables, prompts, load_tokenizer(files.base), limit)
    # Of all models together: what a killed job has done of one counts, whatever the others are when it runs again.
    identity = [artifacts.content_digest(path) for path in [files.base, *(files.get(name) for name in params.sets)]]
    partial = artifacts.partial_directory(
        params.results, "measure_outcomes", *identity, params.templates, params.settings, params.code
    )
    checkpoints = [None, *files.checkpoints]
    for checkpoint, output in zip(checkpoints, [snakemake.output.base, *snakemake.output.tuned], strict=True):
        journal = partial / f"{artifacts.content_digest(checkpoint or files.base)}.jsonl"
        table = outcomes(files.base, checkpoint, answers, params.settings["device"], journal)
        parquet.write_parquet(table, output)
        if table.empty:
            logging.info("%s: its bin is empty, nothing was trained", output)
        else:
            nll = -table["log_likelihood"].sum() / table["n_tokens"].sum()
            logging.info("%s: %d answers, NLL %.4f nats per token", output, len(table), nll)
    run.summary(models=len(checkpoints), answers=len(answers))
    shutil.rmtree(partial)

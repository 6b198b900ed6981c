"""How many tokens an experiment's rows have, and how fast this machine computes a little of each kind of its work."""

import logging

from icprobe import artifacts, cores, execution
from icprobe.tables import parquet
from icprobe.tables.fitting import lengths
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job
from icprobe.workflow.measured import seconds_since_start

with job(snakemake) as run:
    from icprobe.texts.tokenizing import reader

    files, params = snakemake.input, snakemake.params
    prompts = prompts_of(params.templates)
    tables = {name: parquet.read_parquet(files.get(name)) for name in ("train", "tasks", "eval") if files.get(name)}
    counted, reads = parquet.read_parquet(files.lengths), reader(files.model)

    def tokens(name):
        """Of the rows that have an answer, over all rows."""
        rows = tables[name][tables[name]["output"].fillna("").str.strip() != ""]
        found = counted if name == "train" else lengths(rows, prompts, reads)
        return float(found[["n_query", "n_target"]].to_numpy().sum()) / max(len(tables[name]), 1)

    found = {"row_tokens": {name: tokens(name) for name in tables}, "rates": {}, "start": {}, "device": None}
    if params.rate is not None:
        found["rates"] = {kind: params.rate for kind in params.kinds if kind != "decode"}
    elif params.kinds:
        light = seconds_since_start()
        from icprobe import measuring

        settings = dict(params.settings)
        settings["finetune"] = settings["finetune"] | execution.settings("finetune")
        settings["attribution"] = settings["attribution"] | execution.settings("attribution")
        sample = measuring.Sample(
            files.model,
            *(tables.get(name, tables["train"][:0]) for name in ("train", "tasks", "eval")),
            counted,
            prompts,
            settings,
            params.seed,
        )
        found["device"] = sample.model(settings["attribution"]["dtype"]).device.type
        found["start"] = {"light": light, "heavy": seconds_since_start()}
        found["rates"] = measuring.rates(params.kinds, sample)
    artifacts.write_json(snakemake.output[0], found)
    logging.info("%s, on %d cores", found, cores.usable())
    run.summary(**{f"rate/{kind}": rate for kind, rate in found["rates"].items()})

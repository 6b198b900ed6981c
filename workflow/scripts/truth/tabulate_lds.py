"""How well each method predicts what retrained models say: after random subsets, or with single examples left out."""

import logging

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.domains import task_domains
from icprobe.analysis.lds import tabulate
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    table, differences = tabulate(
        read_parquet(files.sets),
        read_parquet(files.outcomes),
        dict(zip(params.methods, files.attributions, strict=True)),
        params.per_task,
        read_parquet(files.lengths),
        task_domains(read_parquet(files.tasks)),
        params.reference,
        params.seed,
    )
    if params.reference is not None:
        table = table.rename(columns={"n_subsets": "n_examples"})
    found = {"lds" if params.reference is None else "leave_one_out": table, "lds_differences": differences}
    # Of examples that are left out, no differences are asked for.
    for (name, one), path in zip(found.items(), snakemake.output, strict=False):
        one.insert(0, "model", snakemake.wildcards.model)
        artifacts.write_csv(path, one)
        run.table(f"{name}_table", one)  # not its own name: that is the summary's number
    for row in headline.of_set(table).itertuples():
        logging.info("%s: %.3f (%.3f to %.3f); ceiling %.3f", row.method, row.lds, row.low, row.high, row.ceiling)
    run.summary(**headline.of_lds(table, next(iter(found))))

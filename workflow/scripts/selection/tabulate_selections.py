"""How much there is to learn from in selections and in their baselines."""

from icprobe import artifacts, jsonl
from icprobe.analysis import headline, selecting
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    subsets = zip(snakemake.params.data_sets.items(), snakemake.input.subsets, strict=True)
    chosen = {name: (*of, [row["id"] for row in jsonl.read(path)]) for (name, of), path in subsets}
    lengths = read_parquet(snakemake.input.lengths).set_index("id")["n_learnt"]
    table = selecting.tabulate(chosen, lengths, snakemake.params.bin)
    artifacts.write_csv(snakemake.output[0], headline.named(table, snakemake.wildcards.model))
    run.table("selections", table)
    run.summary(data_sets=len(chosen))

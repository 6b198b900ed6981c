# The HTML report: one file that shows what was found, and how.

from snakemake.io import strip_wildcard_constraints


def behind_the_report():
    """Each rule that the report rests on, from Snakemake's own DAG: what it needs, says, makes, and its jobs' logs.

    The files of earlier jobs lie beside these, of bins and shards that are no more: only the DAG knows which count.
    """
    dag = workflow.dag
    found, left = {}, [job for job in dag.jobs if job.rule.name == "report"]
    seen = set(left)
    while left:
        job = left.pop()
        needed = list(dag.dependencies[job])
        left += [other for other in needed if other not in seen]
        seen.update(needed)
        facts = found.setdefault(
            job.rule.name,
            {
                "needs": set(),
                "message": str(job.rule.message or ""),
                "makes": strip_wildcard_constraints(str(next(iter(job.rule.output), ""))),
                "logs": set(),
            },
        )
        # The report is still being written: what lies beside its log is of the one before.
        facts["logs"] |= set(map(str, job.log)) if job.rule.name != "report" else set()
        facts["needs"] |= {other.rule.name for other in needed}
    # In a fixed order: it is a param, and the picture.
    order = [one.name for one in workflow.rules if one.name in found]
    return {name: {**found[name], **{key: sorted(found[name][key]) for key in ("needs", "logs")}} for name in order}


rule report:
    localrule: True
    message:
        "Writing the report of {CONFIG.experiment}"
    input:
        train=results("data/train.parquet"),
        tasks=results("data/tasks.parquet"),
        tables=[each_model(path) for path in [*TABLES, *evaluation_tables()]],
        figures=[each_model(path) for path in [*analysis_figures(), *evaluation_figures()]],
        sweep=sweep_figures(),
        lengths=each_model("data/lengths.parquet"),
        scores=each_model_and_method("scores/{method}.parquet"),
        attributions=each_model_and_method("attributions/{method}.parquet"),
    # No wildcards: it is a target, too.
    output:
        results("report.html"),
    params:
        experiment=CONFIG.experiment,
        models=CONFIG.models,
        methods=CONFIG.attribution.methods,
        tables=[*TABLES, *evaluation_tables()],
        figures=[*analysis_figures(), *evaluation_figures()],
        labels=CONFIG.data.labels,
        sound_labels=CONFIG.data.sound_labels,
        examples=CONFIG.report.examples,
        colors=CONFIG.figures.colors,
        rules=lambda w: behind_the_report(),
        # W&B's options change no result, so they are no part of the record.
        config_text=lambda w: CONFIG.as_yaml(exclude={"wandb"}),
        templates=package_files("templates/report.*"),
        code=fingerprint("report"),
    log:
        f"logs/{CONFIG.experiment}/report.log",
    benchmark:
        f"logs/{CONFIG.experiment}/report.benchmark.tsv"
    resources:
        **RESOURCES["report"],
    script:
        "../workflow/scripts/report.py"

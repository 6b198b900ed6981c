# The HTML report: one file that shows what was found, and how.


rule report:
    localrule: True
    message:
        "Writing the report of {CONFIG.experiment}"
    input:
        train=results("data/train.parquet"),
        tasks=results("data/tasks.parquet"),
        tables=[each_model(path) for path in [*TABLES, *evaluation_tables()]],
        figures=[each_model(path) for path in model_figures()],
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
        figures=model_figures(),
        labels=CONFIG.data.labels,
        sound_labels=CONFIG.data.sound_labels,
        examples=CONFIG.report.examples,
        colors=CONFIG.figures.colors,
        rules=lambda w: provenance.behind("report", workflow.dag),
        # W&B's options change no result, so they are no part of the record.
        config_text=lambda w: CONFIG.as_yaml(exclude={"wandb"}),
        templates=package_files("report/templates/report.*"),
        code=fingerprint("report/report"),
    log:
        f"logs/{CONFIG.experiment}/report.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        f"logs/{CONFIG.experiment}/report.benchmark.tsv"
    resources:
        **RESOURCES["report"],
    script:
        "../workflow/scripts/report/report.py"

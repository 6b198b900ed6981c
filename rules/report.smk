# The HTML report: one file that shows what was found, and how.


rule report:
    localrule: True
    message:
        "Writing the report of {CONFIG.experiment}"
    input:
        train=paths.TRAIN.format(experiment=CONFIG.experiment),
        tasks=paths.TASKS.format(experiment=CONFIG.experiment),
        tables=[each_model(path) for path in [*TABLES, *JUDGED_TABLES]],
        figures=[each_model(path) for path in model_figures()],
        sweep=sweep_figures(),
        lengths=expand(paths.LENGTHS, **EACH_MODEL),
        scores=each_model_and_method(paths.scores()),
        attributions=each_model_and_method(paths.matrix()),
    # No wildcards: it is a target, too.
    output:
        paths.REPORT.format(experiment=CONFIG.experiment),
    params:
        experiment=CONFIG.experiment,
        models=CONFIG.models,
        methods=CONFIG.attribution.methods,
        tables=[*TABLES, *JUDGED_TABLES],
        figures=model_figures(),
        labels=CONFIG.data.labels,
        sound_labels=CONFIG.data.sound_labels,
        examples=CONFIG.report.examples,
        colors=CONFIG.figures.colors,
        asked={method: [METHODS[method].asks, score_unit(method)] for method in CONFIG.attribution.methods},
        rules=lambda w: provenance.behind("report", workflow.dag),
        # W&B's options change no result, so they are no part of the record.
        config_text=lambda w: CONFIG.as_yaml(exclude={"wandb"}),
        templates=package_files("report/templates/report.*"),
        code=fingerprint("report/report"),
    log:
        paths.log("report", CONFIG.experiment),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("report", CONFIG.experiment)
    resources:
        **RESOURCES["report"],
    script:
        "../workflow/scripts/report/report.py"

# From tables to figures, each as SVG, as PDF and as the numbers that it shows. The registry, icprobe.figures, says which
# there are and what each reads; one process draws all of a group. No torch here.


rule plot_scores:
    localrule: True
    message:
        "Drawing the figures of {wildcards.model}"
    input:
        **figure_inputs("scores"),
    output:
        **figure_outputs("scores"),
    params:
        **figure_params("scores"),
        methods=CONFIG.attribution.methods,
        axis_labels=axis_labels(),
        labels=CONFIG.data.labels,
    log:
        paths.log("plot_scores/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("plot_scores/{model}")
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/figures/plot.py"


if PLAN.judged:

    rule plot_judgements:
        localrule: True
        message:
            "Drawing the win rates of {wildcards.model}"
        input:
            **figure_inputs("judgements"),
        output:
            **figure_outputs("judgements"),
        params:
            **figure_params("judgements"),
            methods=CONFIG.attribution.methods,
        log:
            paths.log("plot_judgements/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("plot_judgements/{model}")
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/figures/plot.py"


if PLAN.sweep:

    rule plot_sweep:
        localrule: True
        message:
            "Drawing icp against influence by model and by domain of task"
        input:
            **figure_inputs("sweep"),
        output:
            **figure_outputs("sweep"),
        params:
            **figure_params("sweep"),
            in_domain=CONFIG.data.in_domain,
        log:
            paths.log("plot_sweep"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("plot_sweep")
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/figures/plot.py"


rule analysis:
    localrule: True
    message:
        f"{CONFIG.experiment}: all tables and figures of the scores are there"
    input:
        [each_model(path) for path in [*TABLES, *SCORE_TABLES, *figure_files("scores")]],
        sweep_figures(),
        REPEATED,

# From tables to figures, each as SVG, as PDF and as the numbers that it shows. Which there are, and what each reads, says
# the registry, icprobe.figures; one process draws all of a group. No torch here.


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
        "logs/{experiment}/plot_scores/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_scores/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/figures/plot.py"


if JUDGED:

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
        log:
            "logs/{experiment}/plot_judgements/{model}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/plot_judgements/{model}.benchmark.tsv"
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/figures/plot.py"


if SWEEP:

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
            "logs/{experiment}/plot_sweep.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/plot_sweep.benchmark.tsv"
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/figures/plot.py"

# Methods held against retraining. No torch here.

# What a method predicts of a set of examples: from its matrix where it has a value for each task.
PREDICTION_INPUTS = dict(
    attributions=[
        (paths.matrix if method in PLAN.per_task else paths.scores)(method) for method in CONFIG.attribution.methods
    ],
    lengths=paths.LENGTHS,
    tasks=paths.TASKS,
)


if "subsets" in PLAN.truth_parts:

    rule tabulate_lds:
        localrule: True
        message:
            "How well the methods predict what {wildcards.model} learns from random subsets"
        input:
            **PREDICTION_INPUTS,
            sets=paths.SETS.replace("{part}", "subsets"),
            outcomes=paths.truth_outcomes("subsets"),
        output:
            table=table("lds", "Retraining", "linear datamodeling score"),
            differences=table("lds_differences", "Retraining", "differences in LDS"),
        params:
            methods=CONFIG.attribution.methods,
            per_task=PLAN.per_task,
            reference=None,
            seed=CONFIG.seed,
            code=fingerprint("truth/tabulate_lds"),
        log:
            paths.log("tabulate_lds/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("tabulate_lds/{model}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/truth/tabulate_lds.py"


if "removals" in PLAN.truth_parts:

    rule tabulate_removal:
        localrule: True
        message:
            "What the tasks of {wildcards.model} lose without each method's best examples"
        input:
            tasks=paths.TASKS,
            sets=paths.SETS.replace("{part}", "removals"),
            outcomes=paths.truth_outcomes("removals"),
        output:
            table("removal", "Retraining", "removal of the best examples"),
        params:
            code=fingerprint("truth/tabulate_removal"),
        log:
            paths.log("tabulate_removal/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("tabulate_removal/{model}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/truth/tabulate_removal.py"


if "left_out" in PLAN.truth_parts:

    rule tabulate_left_out:
        localrule: True
        message:
            "How well the methods predict what single examples give to {wildcards.model}"
        input:
            **PREDICTION_INPUTS,
            sets=paths.SETS.replace("{part}", "left_out"),
            outcomes=paths.truth_outcomes("left_out"),
        output:
            table=table("leave_one_out", "Retraining", "single examples left out"),
        params:
            methods=CONFIG.attribution.methods,
            per_task=PLAN.per_task,
            reference="all",
            seed=CONFIG.seed,
            code=fingerprint("truth/tabulate_lds"),
        log:
            paths.log("tabulate_left_out/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("tabulate_left_out/{model}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/truth/tabulate_lds.py"

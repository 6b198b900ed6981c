# The truth that methods are held against: models trained anew on other examples, and what the answers are worth to them.

TRUTH_TABLES = [f"tables/{name}" for name in PLAN.truth_tables]
# What `snakemake truth` makes.
TRUTH = [
    *(each_model(path) for path in [*TRUTH_TABLES, *figure_files("truth")]),
    *(expand(paths.truth_outcomes(part), **EACH_MODEL) for part in PLAN.truth_parts),
]


rule truth:
    localrule: True
    message:
        f"{CONFIG.experiment}: methods are held against retraining"
    input:
        TRUTH,
        paths.TRUTH_REPORT.format(experiment=CONFIG.experiment) if PLAN.truth_parts else [],


if PLAN.truth_parts:

    rule draw_sets:
        localrule: True
        message:
            "Drawing sets of examples to train {wildcards.model} on: {wildcards.part}"
        input:
            train=paths.TRAIN,
        output:
            paths.SETS,
        wildcard_constraints:
            part="subsets|left_out",
        params:
            number=lambda w: CONFIG.truth.subsets if w.part == "subsets" else CONFIG.truth.leave_one_out,
            share=lambda w: CONFIG.truth.share if w.part == "subsets" else None,
            seed=CONFIG.seed,
            code=fingerprint("truth/draw_sets"),
        log:
            paths.log("draw_sets/{model}/{part}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("draw_sets/{model}/{part}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/truth/draw_sets.py"

    rule choose_removals:
        localrule: True
        message:
            "Choosing the examples that {wildcards.model} is trained without"
        input:
            train=paths.TRAIN,
            scores=[paths.scores(method) for method in CONFIG.truth.removals],
            matrices=[paths.matrix(method) for method in CONFIG.truth.removals],
        output:
            paths.SETS.replace("{part}", "removals"),
        params:
            methods=CONFIG.truth.removals,
            by_task=[PLAN.removed_by_task(method) for method in CONFIG.truth.removals],
            drop=CONFIG.truth.drop,
            controls=CONFIG.truth.controls,
            seed=CONFIG.seed,
            code=fingerprint("truth/choose_removals"),
        log:
            paths.log("choose_removals/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("choose_removals/{model}")
        threads: 1
        resources:
            **OF_MATRIX,
        script:
            "../workflow/scripts/truth/choose_removals.py"

    rule retrain:
        message:
            "Training {wildcards.model} on other examples: {wildcards.part}, chunk {wildcards.chunk}"
        input:
            **{name: paths.data(name) for name in PLAN.held_out_sets},
            train=paths.TRAIN,
            sets=paths.SETS,
            base=model_of,
            base_manifest=manifest_of,
            checked=section_dtype_checked("finetune"),
            losses=ancient(paths.LOSSES_CHECKED),  # to know of it early; nothing is read
        output:
            paths.RETRAINED,
        wildcard_constraints:
            part=either(PLAN.truth_parts),
            chunk=r"\d+-of-\d+",
        params:
            sets=PLAN.held_out_sets,
            seeds=CONFIG.truth.seeds,
            settings=TRAINING,
            templates=PLAN.text_settings("query", "target"),
            bank=lambda w: paths.RETRAININGS.format(experiment=w.experiment),
            code=fingerprint("truth/retrain"),
        log:
            paths.log("retrain/{model}/{part}/{chunk}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("retrain/{model}/{part}/{chunk}")
        threads: THREADS
        resources:
            **RESOURCES["retrain"],
            heavy=1,
        script:
            "../workflow/scripts/truth/retrain.py"

    rule gather_retrained:
        localrule: True
        message:
            "Gathering what the answers are worth after training {wildcards.model} on other examples: {wildcards.part}"
        input:
            lambda w: retrained_chunks(w.part, w.model),
        output:
            paths.truth_outcomes("{part}"),
        wildcard_constraints:
            part="removals|left_out",
        params:
            code=fingerprint("truth/gather"),
        log:
            paths.log("gather_retrained/{model}/{part}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("gather_retrained/{model}/{part}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/truth/gather.py"

    use rule gather_retrained as gather_subsets with:
        localrule: True
        message:
            "Gathering what the answers are worth after training {wildcards.model} on random subsets"
        input:
            lambda w: retrained_chunks("subsets", w.model),
        output:
            paths.truth_outcomes("subsets"),
        log:
            paths.log("gather_subsets/{model}"),
        benchmark:
            paths.benchmark("gather_subsets/{model}")

# From scores to data sets by other rules than bins: the subset of each selection and of each baseline of it.

SIZES_AND_RULES = ("top", "bottom", "tokens", *RULES)


if CONFIG.selections:

    # Beside `measure_lengths`: what fine-tuning cuts is nothing to the scores.
    rule count_learnt:
        localrule: True
        message:
            "Counting the tokens that fine-tuning {wildcards.model} learns from"
        input:
            train=paths.TRAIN,
            model=lambda w: model_of(w) if PLAN.is_here(w.model) else [],
            manifest=lambda w: manifest_of(w) if PLAN.is_here(w.model) else [],
        output:
            paths.LEARNT,
        params:
            templates=PLAN.text_settings("query", "target"),
            # Who trains elsewhere has not said where to cut.
            max_length=CONFIG.finetune.max_length if "finetune" in CONFIG.model_fields_set else None,
            code=fingerprint("selection/count_learnt"),
        log:
            paths.log("count_learnt/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("count_learnt/{model}")
        priority: 2
        resources:
            **RESOURCES["measure_lengths"],
        script:
            "../workflow/scripts/selection/count_learnt.py"

    # One for each: what one of them asks for is nothing to the others.
    rule check_selection:
        localrule: True
        message:
            "Checking that there are enough examples for the selection {wildcards.method} of {wildcards.model}"
        input:
            train=paths.TRAIN,
            lengths=lambda w: paths.LEARNT if chosen_by(w).counts_tokens else [],
        output:
            paths.SELECTION_CHECKED,
        wildcard_constraints:
            method=either(CONFIG.selections),
        params:
            rule=lambda w: slice_of(chosen_by(w), *SIZES_AND_RULES),
            code=fingerprint("selection/check_selection"),
        log:
            paths.log("check_selection/{model}/{method}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("check_selection/{model}/{method}")
        # Before all else that could run.
        priority: 3
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/selection/check_selection.py"

    rule select_examples:
        localrule: True
        message:
            "Choosing the selection {wildcards.method} on {wildcards.model}"
        input:
            examples=paths.TRAIN,
            scores=lambda w: paths.scores(chosen_by(w).method),
            matrix=lambda w: paths.matrix(chosen_by(w).method) if chosen_by(w).per_task else [],
            lengths=lambda w: paths.LEARNT if chosen_by(w).counts_tokens else [],
            vectors=lambda w: paths.EMBEDDINGS if chosen_by(w).diverse else [],
            checked=paths.SELECTION_CHECKED,
        output:
            subset=paths.SUBSET,
            messages=paths.MESSAGES,
        wildcard_constraints:
            method=either(CONFIG.selections),
            bin=SELECTED,
        params:
            rule=lambda w: slice_of(chosen_by(w), *SIZES_AND_RULES),
            templates=PLAN.text_settings("query", "target"),
            code=fingerprint("selection/select_examples"),
        log:
            paths.log("select_examples/{model}/{method}/{bin}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("select_examples/{model}/{method}/{bin}")
        threads: 1
        resources:
            **RESOURCES["subset"],
        script:
            "../workflow/scripts/selection/select_examples.py"

    rule embed_examples:
        message:
            "Embedding the examples with {wildcards.model}"
        input:
            train=paths.TRAIN,
            lengths=paths.LENGTHS,
            model=model_of,
            manifest=manifest_of,
            checked=lambda w: dtype_checked(w, PLAN.embedding_settings),
        output:
            paths.EMBEDDINGS,
        params:
            settings=PLAN.embedding_settings,
            templates=PLAN.text_settings(),
            results=lambda w: paths.EXPERIMENT.format(experiment=w.experiment),
            code=fingerprint("selection/embed_examples"),
        log:
            paths.log("embed_examples/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("embed_examples/{model}")
        threads: THREADS
        resources:
            **RESOURCES["embed_examples"],
            heavy=1,
        script:
            "../workflow/scripts/selection/embed_examples.py"

    rule draw_baseline:
        localrule: True
        message:
            "Drawing {wildcards.method} on {wildcards.model}"
        input:
            examples=paths.TRAIN,
            scores=lambda w: paths.scores(chosen_by(w).method),
            chosen=lambda w: paths.SUBSET.replace("{method}", PLAN.data_sets[w.method].selection),
            # Where the selection takes only what can be trained on, so does each baseline.
            lengths=lambda w: (
                paths.LEARNT if chosen_by(w).counts_tokens or PLAN.data_sets[w.method].baseline in OF_LENGTHS else []
            ),
        output:
            subset=paths.SUBSET,
            messages=paths.MESSAGES,
        wildcard_constraints:
            method=either(name for name, of in PLAN.data_sets.items() if of.baseline),
            bin=SELECTED,
        params:
            drawn=lambda w: PLAN.data_sets[w.method]._asdict(),
            seed=CONFIG.seed,
            templates=PLAN.text_settings("query", "target"),
            code=fingerprint("selection/draw_baseline"),
        log:
            paths.log("draw_baseline/{model}/{method}/{bin}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("draw_baseline/{model}/{method}/{bin}")
        threads: 1
        resources:
            **RESOURCES["subset"],
        script:
            "../workflow/scripts/selection/draw_baseline.py"

    # Beside the files for trainers, on which trainings depend: another method, scored later, repeats none.
    rule describe_selection:
        localrule: True
        message:
            "Describing the selection {wildcards.method} of {wildcards.model} for those who train on it"
        input:
            subset=paths.SUBSET.replace("{bin}", SELECTED),
            scores=paths.table("scores.parquet"),
        output:
            card=paths.CARD,
            info=paths.DATASET_INFO,
            scores=paths.SELECTED_SCORES,
        wildcard_constraints:
            method=either(PLAN.data_sets),
        params:
            baseline=lambda w: PLAN.data_sets[w.method].baseline,
            selection=lambda w: {PLAN.data_sets[w.method].selection: chosen_by(w).as_written()},
            code=fingerprint("selection/describe_selection"),
        log:
            paths.log("describe_selection/{model}/{method}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("describe_selection/{model}/{method}")
        resources:
            **RESOURCES["subset"],
        script:
            "../workflow/scripts/selection/describe_selection.py"

    rule tabulate_selections:
        localrule: True
        message:
            "Measuring the selections of {wildcards.model}"
        input:
            lengths=paths.LEARNT,
            subsets=[paths.SUBSET.replace("{method}", name).replace("{bin}", SELECTED) for name in PLAN.data_sets],
        output:
            table("selections", "Scores", "selections"),
        params:
            data_sets={name: list(of) for name, of in PLAN.data_sets.items()},
            bin=SELECTED,
            code=fingerprint("selection/tabulate_selections"),
        log:
            paths.log("tabulate_selections/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("tabulate_selections/{model}")
        resources:
            **RESOURCES["subset"],
        script:
            "../workflow/scripts/selection/tabulate_selections.py"

    # Never a part of `all`: a copy of the data that is made to be given away.
    rule export:
        localrule: True
        message:
            f"{CONFIG.experiment}: the selections as a data set for others"
        input:
            scores=[results(model, "tables/scores.parquet") for model in CONFIG.models],
            subsets=[data_set_file(paths.SUBSET, *of) for of in EXPORTED.values()],
            messages=[data_set_file(paths.MESSAGES, *of) for of in EXPORTED.values()],
        output:
            card=paths.EXPORT_CARD.format(experiment=CONFIG.experiment),
            tables=[paths.EXPORT_TABLE.format(experiment=CONFIG.experiment, name=name) for name in EXPORTED],
        params:
            title=f"{CONFIG.experiment}: selected examples",
            models=CONFIG.models,
            data_sets=[[name, model, in_words(CONFIG.selections)[of]] for name, (model, of) in EXPORTED.items()],
            asks={method: METHODS[method].asks for method in CONFIG.attribution.methods},
            facts={"experiment": CONFIG.experiment, **exporting.facts(CONFIG)},
            licence=CONFIG.export.licence,
            hub=CONFIG.export.hub,
            code=fingerprint("selection/export"),
        log:
            paths.log("export", experiment=CONFIG.experiment),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("export", experiment=CONFIG.experiment)
        resources:
            **RESOURCES["subset"],
        script:
            "../workflow/scripts/selection/export.py"

    if CONFIG.export.hub:

        rule publish:
            localrule: True
            message:
                "Uploading the selections to {params.hub}"
            input:
                rules.export.output,
            output:
                paths.PUBLISHED.format(experiment=CONFIG.experiment),
            params:
                hub=CONFIG.export.hub,
                private=CONFIG.export.private,
                code=fingerprint("selection/publish"),
            log:
                paths.log("publish", experiment=CONFIG.experiment),
            conda:
                "../envs/icprobe.yaml"
            benchmark:
                paths.benchmark("publish", experiment=CONFIG.experiment)
            resources:
                **LIGHT,
            script:
                "../workflow/scripts/selection/publish.py"

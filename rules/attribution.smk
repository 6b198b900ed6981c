# Attribution matrices: what each example is worth for each task, by each method, in shards.

INFLUENCE = PLAN.together
ATTRIBUTION_INPUTS = dict(
    train=paths.TRAIN,
    tasks=paths.TASKS,
    lengths=paths.LENGTHS,
)


rule attribute:
    message:
        "{wildcards.method} of {wildcards.model}, shard {wildcards.scatteritem}"
    input:
        unpack(read_of_model),
        **ATTRIBUTION_INPUTS,
    output:
        matrix=paths.shard(),
    wildcard_constraints:
        method=either(PLAN.alone(needs_model=True)),
    params:
        methods=lambda w: [w.method],
        module=lambda w: METHODS[w.method].module,
        per_task=lambda w: METHODS[w.method].per_task,
        by_itself=lambda w: METHODS[w.method].reads if METHODS[w.method].by_itself else None,
        settings=lambda w: PLAN.method_settings(w.method),
        execution=lambda w: METHODS[w.method].execution,
        templates=lambda w: PLAN.text_settings() if METHODS[w.method].needs_model else {},
        seed=lambda w: CONFIG.seed if METHODS[w.method].seeded else None,
        code=lambda w: fingerprint("attribution/attribute", METHODS[w.method].module),
    log:
        paths.log("attribute/{model}/{method}/{scatteritem}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("attribute/{model}/{method}/{scatteritem}")
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
        method=either(PLAN.alone(needs_model=False)),
    log:
        paths.log("attribute_without_model/{model}/{method}/{scatteritem}"),
    benchmark:
        paths.benchmark("attribute_without_model/{model}/{method}/{scatteritem}")
    priority: 1  # seconds, for something to look at while others compute
    threads: 1
    resources:
        **RESOURCES["attribute_without_model"],


if INFLUENCE:

    rule attribute_influence:
        message:
            "influence of {wildcards.model}, shard {wildcards.scatteritem}"
        input:
            **ATTRIBUTION_INPUTS,
            model=model_of,
            manifest=manifest_of,
            checked=lambda w: dtype_checked(w, PLAN.method_settings(INFLUENCE[0])),
            losses=lambda w: losses_checked(w, INFLUENCE[0]),
            parameters=lambda w: parameters_checked(w, INFLUENCE[0]),
        output:
            **{m: paths.shard(m) for m in INFLUENCE},
        params:
            methods=INFLUENCE,
            module=METHODS[INFLUENCE[0]].module,
            per_task=True,
            by_itself=METHODS[INFLUENCE[0]].reads,
            settings=PLAN.method_settings(INFLUENCE[0]),
            execution=METHODS[INFLUENCE[0]].execution,
            templates=PLAN.text_settings(),
            seed=None,
            code=fingerprint("attribution/attribute", METHODS[INFLUENCE[0]].module),
        log:
            paths.log("attribute_influence/{model}/{scatteritem}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("attribute_influence/{model}/{scatteritem}")
        threads: THREADS
        resources:
            **RESOURCES["attribute_influence"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/attribute.py"


if PLAN.external:

    rule read_external:
        localrule: True
        message:
            "Reading the external scores {wildcards.method}"
        input:
            scores=lambda w: PLAN.external_files(w.method),
            train=paths.TRAIN,
            tasks=paths.TASKS,
        output:
            paths.matrix(),
        wildcard_constraints:
            method=either(PLAN.external),
        params:
            settings=lambda w: slice_of(PLAN.external[w.method]),
            named_by={t: f"attribution.external.{m}" for t, m in PLAN.named_by.items()},
            contents=lambda w: contents(PLAN.external_files(w.method)),
            code=fingerprint("attribution/read_external"),
        log:
            paths.log("read_external/{model}/{method}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("read_external/{model}/{method}")
        resources:
            **RESOURCES["read_external"],
        script:
            "../workflow/scripts/attribution/read_external.py"


if PLAN.combined:

    rule combine:
        localrule: True
        message:
            "Combining {wildcards.method} of {wildcards.model}"
        input:
            matrices=lambda w: [paths.matrix(method) for method in PLAN.combined[w.method].members],
            lengths=lambda w: paths.LENGTHS if PLAN.combined[w.method].given_length else [],
        output:
            paths.matrix(),
        wildcard_constraints:
            method=either(PLAN.combined),
        params:
            how=lambda w: slice_of(PLAN.combined[w.method]),
            members=lambda w: PLAN.combined[w.method].members,
            code=fingerprint("attribution/combine"),
        log:
            paths.log("combine/{model}/{method}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("combine/{model}/{method}")
        resources:
            **RESOURCES["combine"],
        script:
            "../workflow/scripts/attribution/combine.py"


rule gather_attributions:
    localrule: True
    message:
        "Gathering {wildcards.method} attributions of {wildcards.model}"
    input:
        shards=lambda w: shard_files(w.model, w.method),
        train=paths.TRAIN,
    output:
        paths.matrix(),
    wildcard_constraints:
        method=either(PLAN.computed),
    params:
        code=fingerprint("attribution/gather_attributions"),
    log:
        paths.log("gather_attributions/{model}/{method}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("gather_attributions/{model}/{method}")
    priority: 1
    resources:
        **RESOURCES["gather_attributions"],
    script:
        "../workflow/scripts/attribution/gather_attributions.py"


rule score:
    localrule: True
    message:
        "Scoring examples of {wildcards.model} by {wildcards.method}"
    input:
        matrix=paths.matrix(),
        # Shown, not scored: a matrix is anew where texts are.
        train=ancient(paths.TRAIN),
    output:
        paths.scores(),
    params:
        aggregator=lambda w: PLAN.aggregator(w.method),
        allow_missing=lambda w: METHODS[w.method].may_skip,
        code=fingerprint("attribution/score"),
    log:
        paths.log("score/{model}/{method}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("score/{model}/{method}")
    priority: 1
    resources:
        **RESOURCES["score"],
    script:
        "../workflow/scripts/attribution/score.py"


rule attributions:
    localrule: True
    message:
        f"{CONFIG.experiment}: all attribution matrices are there"
    input:
        each_model_and_method(paths.matrix()),

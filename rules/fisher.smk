# The Fisher matrix of the examples in EK-FAC's form: two passes over them, in parts, each with what all parts give behind
# it. The sums of parts go when they have served; eigenvectors and eigenvalues stay, for another damping needs them.

if PLAN.fits_fisher:

    FISHER_METHOD = PLAN.fits_fisher[0]
    FISHER_INPUTS = dict(
        train=paths.TRAIN,
        lengths=paths.LENGTHS,
        model=model_of,
        manifest=manifest_of,
        checked=lambda w: dtype_checked(w, PLAN.method_settings(FISHER_METHOD)),
        losses=lambda w: losses_checked(w, FISHER_METHOD),
        parameters=lambda w: parameters_checked(w, FISHER_METHOD),
    )
    FISHER_PARAMS = dict(
        settings=PLAN.fisher_settings,
        execution=METHODS[FISHER_METHOD].execution,
        templates=PLAN.text_settings(),
        seed=CONFIG.seed if CONFIG.attribution.influence_ekfac.labels == "sampled" else None,
        code=fingerprint("attribution/sum_fisher"),
    )

    rule sum_covariances:
        message:
            "Fisher matrix of {wildcards.model}: covariances, part {wildcards.part}"
        input:
            **FISHER_INPUTS,
        output:
            temp(directory(paths.fisher("covariances"))),
        wildcard_constraints:
            part=r"\d+-of-\d+",
        params:
            **FISHER_PARAMS,
        log:
            paths.log("sum_covariances/{model}/{part}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("sum_covariances/{model}/{part}")
        threads: THREADS
        resources:
            **RESOURCES["sum_covariances"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/sum_fisher.py"

    rule fisher_bases:
        message:
            "Fisher matrix of {wildcards.model}: eigenvectors"
        input:
            parts=lambda w: fisher_parts("covariances", w.model),
        output:
            folder=directory(paths.fisher("bases")),
            manifest=paths.manifest(paths.fisher("bases")),
        params:
            makes="bases",
            code=fingerprint("attribution/gather_fisher"),
        log:
            paths.log("fisher_bases/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("fisher_bases/{model}")
        threads: THREADS
        resources:
            **RESOURCES["fisher_bases"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/gather_fisher.py"

    use rule sum_covariances as sum_eigenvalues with:
        message:
            "Fisher matrix of {wildcards.model}: eigenvalues, part {wildcards.part}"
        input:
            **FISHER_INPUTS,
            bases=ancient(paths.fisher("bases")),
            bases_manifest=paths.manifest(paths.fisher("bases")),
        output:
            temp(directory(paths.fisher("sums"))),
        log:
            paths.log("sum_eigenvalues/{model}/{part}"),
        benchmark:
            paths.benchmark("sum_eigenvalues/{model}/{part}")
        threads: THREADS
        resources:
            **RESOURCES["sum_eigenvalues"],
            heavy=1,

    rule fisher_eigenvalues:
        localrule: True
        message:
            "Fisher matrix of {wildcards.model}: eigenvalues"
        input:
            parts=lambda w: fisher_parts("sums", w.model),
        output:
            folder=directory(paths.fisher("eigenvalues")),
            manifest=paths.manifest(paths.fisher("eigenvalues")),
        params:
            makes="eigenvalues",
            code=fingerprint("attribution/gather_fisher"),
        log:
            paths.log("fisher_eigenvalues/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("fisher_eigenvalues/{model}")
        threads: 1
        resources:
            **RESOURCES["fisher_eigenvalues"],
        script:
            "../workflow/scripts/attribution/gather_fisher.py"


if PLAN.swept:

    rule attribute_ekfac:
        message:
            "influence of {wildcards.model} with the Fisher matrix, shard {wildcards.scatteritem}"
        input:
            **FISHER_INPUTS,
            tasks=paths.TASKS,
            fisher=[ancient(paths.fisher(what)) for what in ("bases", "eigenvalues")],
            fisher_manifests=[paths.manifest(paths.fisher(what)) for what in ("bases", "eigenvalues")],
        output:
            **{m: paths.shard(m) for m in PLAN.swept},
        params:
            methods=PLAN.swept,
            module=METHODS[FISHER_METHOD].module,
            per_task=True,
            by_itself=METHODS[FISHER_METHOD].reads,
            settings=PLAN.pass_settings(PLAN.swept),
            execution=METHODS[FISHER_METHOD].execution,
            templates=PLAN.text_settings(),
            seed=None,
            code=fingerprint("attribution/attribute", METHODS[FISHER_METHOD].module),
        log:
            paths.log("attribute_ekfac/{model}/{scatteritem}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("attribute_ekfac/{model}/{scatteritem}")
        threads: THREADS
        resources:
            **RESOURCES["attribute_ekfac"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/attribute.py"

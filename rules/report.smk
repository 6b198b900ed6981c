# The HTML report: one file that shows what was found, and how.

# Which rules read what which rules make, for the picture of the DAG.
NEEDS = {
    "prepare_model": [],
    "select_tasks": ["prepare_model"],
    "prepare_train": ["select_tasks"],
    "prepare_eval": ["prepare_model"],
    "measure_lengths": ["prepare_train"],
    "attribute": ["measure_lengths"],
    "attribute_influence": ["measure_lengths"],
    "gather_attributions": ["attribute", "attribute_influence"],
    "name_rows": [],
    "read_external": ["name_rows", "prepare_train"],
    "score": ["gather_attributions", "read_external"],
    "correlate": ["score"],
    "compare_bins": ["score"],
    "tell_labels": ["score"],
    "subset": ["score"],
    "fine_tune": ["subset"],
    "generate_base": ["prepare_eval"],
    "take_base_responses": ["prepare_eval"],
    "generate": ["fine_tune", "prepare_eval"],
    "judge": ["generate", "generate_base", "take_base_responses"],
    "read_annotations": [],
    "tabulate_win_rates": ["judge", "read_annotations"],
}


rule report:
    localrule: True
    message:
        "Writing the report of {wildcards.experiment}"
    input:
        train="results/{experiment}/data/train.parquet",
        tasks="results/{experiment}/data/tasks.parquet",
        tables=[each_model(path) for path in [*TABLES, *evaluation_tables()]],
        figures=[each_model(path) for path in [*analysis_figures(), *evaluation_figures()]],
        lengths=each_model("data/lengths.parquet"),
        scores=each_model_and_method("scores/{method}.parquet"),
        attributions=each_model_and_method("attributions/{method}.parquet"),
    output:
        "results/{experiment}/report.html",
    params:
        models=CONFIG.models,
        methods=CONFIG.attribution.methods,
        tables=[*TABLES, *evaluation_tables()],
        figures=[*analysis_figures(), *evaluation_figures()],
        labels=CONFIG.data.labels,
        sound_labels=CONFIG.data.sound_labels,
        examples=CONFIG.report.examples,
        needs=NEEDS,
        # W&B's options change no result, so they are no part of the record.
        config_text=lambda w: CONFIG.as_yaml(exclude={"wandb"}),
        templates=package_files("templates/report.*"),
        code=fingerprint("report"),
    log:
        "logs/{experiment}/report.log",
    benchmark:
        "logs/{experiment}/report.benchmark.tsv"
    resources:
        mem_mb=4000,
        runtime=30,
    script:
        "../workflow/scripts/report.py"

# What each method's agreement with retraining and the other truths costs: a table, a figure, and the page that shows it
# where `all` does not include it.

# Of retraining; the tail patch and the AUC of labels are truths too, where they are computed.
FRONTIER_TABLES = {
    Path(name).stem: paths.table(name)
    for name in [*PLAN.truth_tables, *PLAN.tables]
    if name in {"lds.csv", "removal.csv", "leave_one_out.csv", "tail_patch.csv", "label_aucs.csv"}
}


if PLAN.truth_parts:

    # The files of seconds are no inputs: they change with the machine, and the tables say when attributions are new.
    rule frontier:
        localrule: True
        message:
            "What agreement with each truth costs, {wildcards.model}"
        input:
            **FRONTIER_TABLES,
            train=paths.TRAIN,
            tasks=paths.TASKS,
            lengths=paths.LENGTHS,
            manifest=manifest_of,
            contexts=[paths.CONTEXTS_CHECKED.replace("{method}", method) for method in PLAN.long_contexts],
            chosen=[paths.PARAMETERS_CHECKED] if PLAN.parameters_chosen else [],
            trajectory=[paths.manifest(paths.TRAJECTORY)] if PLAN.along_training else [],
            fisher=[paths.manifest(paths.fisher("bases"))] if PLAN.fits_fisher else [],
            budget=[paths.matrix(method) for method in PLAN.computed if method == "icp_budget"],
        output:
            table("frontier", "Retraining", "agreement and cost"),
        params:
            tables=list(FRONTIER_TABLES),
            logs=lambda w: {method: attribution_logs(w.model, method) for method in CONFIG.attribution.methods},
            external=list(CONFIG.attribution.external),
            dimension=CONFIG.attribution.less.dimension if "less" in PLAN.computed else None,
            counted_as=dict.fromkeys(PLAN.fits_fisher, "influence_ekfac"),
            paid_for={method: PLAN.paid_for(method) for method in PLAN.combined},
            code=fingerprint("analysis/frontier"),
        log:
            paths.log("frontier/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("frontier/{model}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/analysis/frontier.py"

    rule plot_truth:
        localrule: True
        message:
            "Drawing agreement against cost of {wildcards.model}"
        input:
            **figure_inputs("truth"),
        output:
            **figure_outputs("truth"),
        params:
            **figure_params("truth"),
            methods=CONFIG.attribution.methods,
            tail_patch_unit=METHODS["one_step"].unit if PLAN.tail_patch else "",
        log:
            paths.log("plot_truth/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("plot_truth/{model}")
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/figures/plot.py"

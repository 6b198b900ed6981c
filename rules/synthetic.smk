# The check that needs no language model: linear regression in context, where the value of a point has a closed form.

SYNTHETIC_FIGURES = {
    "noise": "agreement against noise",
    "dimension": "agreement against dimension",
    "learning": "what the transformer has learned",
}
SYNTHETIC = [
    paths.synthetic(file).format(experiment=CONFIG.experiment)
    for file in ["correlations.csv", "learning.csv", *(f"figures/{figure}.svg" for figure in SYNTHETIC_FIGURES)]
]
# What the transformer is, which those who load it need as well.
REGRESSOR = ["dimensions", "points", "width", "layers", "heads"]


rule synthetic:
    localrule: True
    message:
        f"{CONFIG.experiment}: icp and influence against closed forms are in results/{CONFIG.experiment}/synthetic"
    input:
        SYNTHETIC,


rule train_regressor:
    message:
        "Training a transformer on random linear functions"
    output:
        directory(paths.TRANSFORMER),
    params:
        settings=slice_of(CONFIG.synthetic, *REGRESSOR, "noise", "steps", "batch_size", "learning_rate"),
        seed=CONFIG.seed,
        results=paths.EXPERIMENT,
        code=fingerprint("synthetic/train_regressor"),
    log:
        paths.log("train_regressor"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("train_regressor")
    threads: 1
    resources:
        **RESOURCES["train_regressor"],
    script:
        "../workflow/scripts/synthetic/train_regressor.py"


rule value_points:
    message:
        "Valuing the points of held-out linear functions"
    input:
        paths.TRANSFORMER,
    output:
        values=paths.synthetic("values.parquet"),
        learning=paths.synthetic("learning.csv"),
    params:
        settings=slice_of(CONFIG.synthetic, *REGRESSOR, "noise", "functions"),
        seed=CONFIG.seed,
        code=fingerprint("synthetic/value_points"),
    log:
        paths.log("value_points"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("value_points")
    threads: 1
    resources:
        **RESOURCES["value_points"],
    script:
        "../workflow/scripts/synthetic/value_points.py"


rule correlate_points:
    message:
        "Correlating the values of points"
    input:
        paths.synthetic("values.parquet"),
    output:
        paths.synthetic("correlations.csv"),
    params:
        resamples=CONFIG.analysis.resamples,
        seed=CONFIG.seed,
        code=fingerprint("synthetic/correlate_points"),
    log:
        paths.log("correlate_points"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("correlate_points")
    resources:
        **RESOURCES["correlate_points"],
    script:
        "../workflow/scripts/synthetic/correlate_points.py"


rule plot_points:
    localrule: True
    message:
        "Drawing the correlations of the values of points, and what the transformer has learned"
    input:
        correlations=paths.synthetic("correlations.csv"),
        learning=paths.synthetic("learning.csv"),
    output:
        **{
            figure: report(
                paths.synthetic(f"figures/{figure}.svg"),
                category="Synthetic check",
                labels={"what": what, "kind": "figure"},
                caption=f"../src/icprobe/figures/captions/synthetic_{figure}.rst",
            )
            for figure, what in SYNTHETIC_FIGURES.items()
        },
        pdfs=[paths.synthetic(f"figures/{figure}.pdf") for figure in SYNTHETIC_FIGURES],
        tables=[paths.synthetic(f"figures/{figure}.csv") for figure in SYNTHETIC_FIGURES],
    params:
        titles=SYNTHETIC_FIGURES,
        colors=CONFIG.figures.colors,
        captions=package_files("figures/captions/synthetic_*.rst"),
        code=fingerprint("synthetic/plot_points"),
    log:
        paths.log("plot_points"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("plot_points")
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/synthetic/plot_points.py"

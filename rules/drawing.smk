# Which figures there are, what they read and where they lie, for the rules in figures.smk and all that ask for figures. The
# registry is icprobe.figures.

from pathlib import Path

from icprobe import figures
from icprobe.figures import FIGURES


def score_unit(method):
    """What a method's score counts, with its unit."""
    if not METHODS[method].per_task:
        return METHODS[method].unit
    if PLAN.aggregator(method) == "fraction_positive":
        return "share of tasks helped"
    return f"mean over tasks, {METHODS[method].unit}"


def axis_labels():
    """What each method's score is, with its unit, for axes."""
    return {method: f"{method} ({score_unit(method)})" for method in CONFIG.attribution.methods}


def scatter_pairs():
    """Pairs of methods to draw against each other."""
    if CONFIG.figures.scatter != "all":
        return [tuple(pair) for pair in CONFIG.figures.scatter]
    methods = CONFIG.attribution.methods
    return [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]


def figure_sources():
    """What figures can be drawn from here, by the names that their registry uses; paths are those of one model."""
    planned = [*PLAN.tables, *PLAN.judged_tables, *PLAN.truth_tables]
    tables = [name for name in planned if name.endswith(".csv")]
    return {
        "scores": SCORES,
        # Known where there are texts, and a model to count their tokens.
        **({"lengths": paths.LENGTHS} if CONFIG.data.train and PLAN.models_here else {}),
        "train": paths.TRAIN,
        "tasks": paths.TASKS,
        **{Path(name).stem: paths.table(name) for name in tables},
    }


def drawn(group):
    """The figures of a group, as (name, *its pair of methods): those for which all is made that they read."""
    return [
        (name, *pair)
        for name, figure in FIGURES.items()
        if figure.group == group and set(figure.reads) <= figure_sources().keys()
        for pair in (scatter_pairs() if figure.of_pairs else [()])
    ]


def figure_inputs(group):
    """What the figures of a group read; those over all models read each model's."""
    read = {source for name, *_ in drawn(group) for source in FIGURES[name].reads}
    found = {source: path for source, path in figure_sources().items() if source in read}
    models = {"model": CONFIG.models} if group == "sweep" else {}
    return {source: expand(path, **models, allow_missing=True) for source, path in found.items()}


def figure_outputs(group):
    """Each figure of a group, marked for Snakemake's report, the same for papers, and the numbers that it shows."""
    place, category = (paths.figure_of_all, "All models") if group == "sweep" else (paths.figure, "{model}")
    stems = {one: place(figures.stem(*one)) for one in drawn(group)}

    def shown(name, *pair):
        figure, svg = FIGURES[name], f"{stems[name, *pair]}.svg"
        return marked(svg, figure.subcategory, figure.what.format(*pair), "figure", name, category)

    return {
        "figures": [shown(*one) for one in stems],
        "pdfs": [f"{stem}.pdf" for stem in stems.values()],
        "tables": [f"{stem}.csv" for stem in stems.values()],
    }


def figure_params(group):
    """Which figures a group has, and what they all depend upon: colours, captions, the code that draws them."""
    names = list(dict.fromkeys(name for name, *_ in drawn(group)))
    return {
        "figures": drawn(group),
        "colors": CONFIG.figures.colors,
        "captions": [package_files(f"figures/captions/{name}.rst") for name in names],
        "code": fingerprint("figures/plot", *map(figures.module, names)),
    }


def figure_files(group):
    """The figures of a group, as paths in the folder of a model, or of the experiment."""
    return [f"figures/{figures.stem(*one)}.svg" for one in drawn(group)]


def model_figures():
    """All figures of one model that `all` includes."""
    return figure_files("scores") + figure_files("judgements") + (figure_files("truth") if CONFIG.truth.in_all else [])


def sweep_figures():
    """Figures over all models and domains; none where there is one of each."""
    return [results(path) for path in figure_files("sweep")] if PLAN.sweep else []

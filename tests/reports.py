"""A made-up experiment, as the arguments of `report.build`: for the tests of the report."""

import re
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

matplotlib.use("svg")

from matplotlib.figure import Figure

from icprobe.analysis.binning import borders, overlaps
from icprobe.report.findings import ModelInputs
from icprobe.report.provenance import RuleRun

BINS = ["<=0.5", ">0.5", ">0.8", ">0.9"]
METHODS = ["icp", "influence", "influence_log", "one_step", "length", "random"]
STATISTICS = ["spearman", "pearson", "kendall", "spearman_partial_length"]
WORDS = re.findall(
    r"\w+", "river stone bright letter cloud seven market gentle window paper north winter garden music harbour"
)
WIN_RATE_COLUMNS = ["model", "method", "bin", "subset", "seed", "n", "win_rate", "standard_error", "low", "high"]
WIN_RATE_COLUMNS += ["discrete_win_rate", "n_wins", "n_wins_base", "n_draws"]

SCRIPT = "</script><script>window.attacked = 1</script>"
IMAGE = '<img src=x onerror="window.attacked = 2"> &amp; &lt;b&gt;'
RTL = "مرحبا بالعالم \u202e reversed \u202c"
CONTROLS = "before\x00between\x07after\u2028line\u2029end\ud800."
JINJA = "{{ 7 * 7 }} {% raw %} ${1+1} <!-- <script>"
HOSTILE = [SCRIPT, IMAGE, RTL, CONTROLS, JINJA]


def correlation_rows(scores, model):
    return pd.DataFrame(
        [
            (model, a, b, statistic, value := spearmanr(scores[a], scores[b]).statistic, value - 0.1, value + 0.1)
            for a, b in combinations(scores, 2)
            for statistic in STATISTICS
        ],
        columns=["model", "method_a", "method_b", "statistic", "value", "low", "high"],
    ).assign(interval="bootstrap", n=len(scores["icp"]))


def win_rate_rows(model, rng):
    rows = []
    for method, bin_ in [
        ("icp", "<=0.5"),
        ("icp", ">0.8"),
        ("influence", "<=0.5"),
        ("influence", ">0.8"),
        ("all", "all"),
    ]:
        for subset in ["everyday", "knowledge", "overall"]:
            for seed in ["0", "1", "all"]:
                rate, error = 50 + 12 * rng.standard_normal(), 6.0
                rows.append((model, method, bin_, subset, seed, 24, rate, error, rate - 12, rate + 12, rate, 11, 9, 4))
    return pd.DataFrame(
        rows,
        columns=WIN_RATE_COLUMNS,
    )


def figure(path, title):
    drawing = Figure(figsize=(4, 3))
    axes = drawing.subplots()
    axes.scatter(range(10), range(10))
    axes.set(title=title, xlabel="icp (share of tasks helped)", ylabel="influence")
    drawing.savefig(path, bbox_inches="tight", metadata={"Title": title, "Date": None})
    return path


def experiment(directory, n=96, m=12, models=("smollm2",), words=40, methods_with_mean_effects=()):
    """The arguments of `build` for made-up examples, of which a quarter are planted; files in `directory`."""
    rng = np.random.default_rng(0)
    text = lambda k: " ".join(rng.choice(WORDS, k)).capitalize() + "."  # noqa: E731
    planted = np.where(np.arange(n) % 4 == 0, rng.choice(["truncated", "scrambled"], n), "sound")
    train = pd.DataFrame(
        {
            "id": [f"demo-{i:05d}" for i in range(n)],
            "instruction": [text(9) for _ in range(n)],
            "input": [text(6) if i % 3 == 0 else "" for i in range(n)],
            "output": [text(int(k)) for k in rng.integers(words // 2, words * 3 // 2, n)],
            "planted": planted,
        }
    )
    tasks = pd.DataFrame(
        {
            "id": [f"task-{t:02d}" for t in range(m)],
            "instruction": [text(7) for _ in range(m)],
            "input": "",
            "output": "x",
        }
    )
    inputs = {}
    for model in models:
        folder = directory / model
        for name in ("scores", "attributions"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        worth = rng.standard_normal(n) - 1.2 * (planted != "sound")
        scores = {}
        attributions = {}
        for k, method in enumerate(METHODS):
            if method in ("length", "random"):
                values = rng.integers(5, 200, n).astype(float) if method == "length" else rng.random(n)
                matrix = pd.DataFrame({"score": values.astype(np.float32)})
            else:
                values = (worth[:, None] + rng.standard_normal((n, m))) * 10.0**k
                matrix = pd.DataFrame(values.astype(np.float32), columns=tasks["id"])
                values = (values > 0).mean(1) if method in ("icp", "one_step") else values.mean(1)
            matrix.insert(0, "id", train["id"])
            attributions[method] = folder / "attributions" / f"{method}.parquet"
            matrix.to_parquet(attributions[method])
            scores[method] = pd.Series(values, index=train["id"])
            path = folder / "scores" / f"{method}.parquet"
            table = pd.DataFrame({"id": train["id"], "score": values})
            if method in methods_with_mean_effects:
                table["mean_effect"] = matrix[tasks["id"]].mean(axis=1)
            table.to_parquet(path)
        lengths = pd.DataFrame({"id": train["id"], "n_query": 20, "n_target": scores["length"].astype(int).to_numpy()})
        inputs[model] = ModelInputs(
            scores={method: folder / "scores" / f"{method}.parquet" for method in METHODS},
            attributions=attributions,
            lengths=lengths,
            correlations=correlation_rows(scores, model),
            bins=borders(scores, BINS).assign(model=model),
            overlaps=overlaps(scores, BINS).assign(model=model),
            win_rates=win_rate_rows(model, rng),
            figures=[
                figure(folder / "scatter_icp_influence.svg", "icp against influence"),
                figure(folder / "distributions.svg", "Score distributions"),
            ],
        )
    return {
        "experiment": "demo",
        "config_text": "experiment: demo\nbins: ['<=0.5', '>0.8']\n",
        "models": inputs,
        "train": train,
        "tasks": tasks,
        "labels": ["planted", "published_icp"],
        "sound_labels": {"planted": ["sound"], "published_icp": [">0.9"]},
        "top": 20,
        "environment": {
            "icprobe": "0.1.0",
            "commit": "0123456789abcdef",
            "device": "cpu",
            "dtype": "bfloat16",
            "threads": 2,
            "versions": {"python": "3.11", "torch": "2.13.0"},
        },
        "dag": WORKFLOW,
    }


WORKFLOW = [
    RuleRun("prepare_model", 21.4, 900, ()),
    RuleRun("prepare_train", 1.2, 150, ()),
    RuleRun("prepare_eval", 0.9, 150, ()),
    RuleRun("select_tasks", 1.1, 150, ("prepare_model",)),
    RuleRun("measure_lengths", 3.0, 300, ("prepare_model", "prepare_train")),
    *[RuleRun("attribute", 40 + 8 * k, 2100, ("prepare_model", "prepare_train", "select_tasks")) for k in range(4)],
    RuleRun("attribute_influence", 122.0, 3900, ("prepare_model", "prepare_train", "select_tasks")),
    *[RuleRun("gather_attributions", 0.6, 120, ("attribute", "attribute_influence")) for _ in range(6)],
    *[RuleRun("score", 0.6, 120, ("gather_attributions",)) for _ in range(6)],
    RuleRun("correlate", 4.2, 210, ("score", "measure_lengths")),
    RuleRun("plot_scores", 3.1, 200, ("score", "correlate")),
    *[RuleRun("subset", 0.8, 120, ("score", "prepare_train")) for _ in range(6)],
    *[RuleRun("fine_tune", 31.0, 2900, ("prepare_model", "subset")) for _ in range(7)],
    *[RuleRun("generate", 19.0, 1500, ("fine_tune", "prepare_eval")) for _ in range(7)],
    RuleRun("generate_base", 20.0, 1500, ("prepare_model", "prepare_eval")),
    *[RuleRun("judge", 1.0, 130, ("generate", "generate_base", "prepare_eval")) for _ in range(7)],
    RuleRun("win_rates", 1.6, 160, ("judge",)),
    ("report", None, None, ("correlate", "win_rates", "plot_scores")),
]


def with_texts(arguments, texts):
    """The same experiment with these texts as instruction, input, output and label of as many examples."""
    train = arguments["train"].astype(dict.fromkeys(("instruction", "input", "output"), object))
    for column in ("instruction", "input", "output"):
        train.loc[: len(texts) - 1, column] = texts
    train.loc[: len(texts) - 1, "planted"] = [text.replace("\ud800", "") for text in texts]
    return arguments | {"train": train}

"""What fine-tuning can learn from, in the DAG: counted for selections, and checked before anything is trained anew."""

import json

import dag
import pandas as pd
import pytest

BASE = {"data": {"train": {"sample": None}}, "attribution": {"methods": ["length"]}, "bins": []}
BASE |= {"figures": {"scatter": "all"}}
SELECTIONS = {**BASE, "selections": {"best": {"method": "length", "tokens": 60}}}
NO_TRAINING = {"methods": [], "bins": None, "all_data": False}
LEARNT, LENGTHS = (str(dag.RESULTS / f"data/{name}.parquet") for name in ("learnt", "lengths"))
LOG = "tiny/count_learnt/tiny-llama.log"
LONG = 600  # words of a response, of which each has a token or more
TRUTH = {**BASE, "truth": {"subsets": 2}, "finetune": {**NO_TRAINING, "max_length": 5}}
RETRAINED = str(dag.RESULTS / "truth/outcomes.parquet")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An experiment of which one response is longer than fine-tuning reads unless it is told otherwise."""
    project = dag.new(tmp_path_factory.mktemp("learnt"))
    rows = [json.loads(line) for line in project.read("train.jsonl").splitlines()]
    for row in rows:
        row["output"] += " and so on" * (LONG // 3 if row is rows[0] else 0)
    text = "".join(f"{json.dumps(row)}\n" for row in rows[:24])
    (project.path / "train.jsonl").write_text(text, encoding="utf-8")
    return project


def counted(project, **sections):
    """The tokens that are learnt from, and those that responses have, after the job."""
    ended = project.snakemake(LEARNT, LENGTHS, "--cores", "1", config={**SELECTIONS, **sections})
    assert ended.returncode == 0, ended.output[-3000:]
    tables = (pd.read_parquet(project.path / path).set_index("id") for path in (LEARNT, LENGTHS))
    return *tables, ended


def test_without_fine_tuning_here_all_tokens_of_a_response_count(project):
    learnt, lengths, _ = counted(project, finetune=None, evaluation=None)
    assert lengths["n_target"].max() > 512, "what `finetune.max_length` would cut if it were left out"
    assert (learnt["n_learnt"] == lengths["n_target"] + 1).all()
    assert "cut off" not in project.log(LOG)


def test_with_fine_tuning_here_it_cuts_and_says_so(project):
    length = 40
    learnt, lengths, ended = counted(project, finetune={**NO_TRAINING, "max_length": length})
    whole = lengths["n_target"] + 1
    wanted = (length - lengths["n_query"]).clip(lower=0)
    assert (learnt["n_learnt"] == whole.where(whole < wanted, wanted)).all()
    dropped = int((wanted == 0).sum())
    cut = int((whole > wanted).sum()) - dropped
    assert cut
    said = f"{cut} of 24 examples are cut off at {length} tokens; {dropped} are dropped because their query alone is"
    assert said in project.log(LOG)
    assert said in " ".join(ended.output.split())


def test_what_fine_tuning_drops_is_neither_chosen_nor_drawn(project):
    _, lengths, _ = counted(project, finetune=None, evaluation=None)
    config = {**SELECTIONS, "selections": {"best": {"method": "length", "top": 8, "match": "length"}}}
    config["selections"]["best"]["baselines"] = ["random"]
    config["finetune"] = {**NO_TRAINING, "max_length": int(lengths["n_query"].median())}
    made = [dag.RESULTS / f"subsets/{name}/selected.jsonl" for name in ("best", "best-random")]
    ended = project.snakemake(*map(str, made), "--cores", "1", config=config)
    assert ended.returncode == 0, ended.output[-3000:]
    known = {*lengths.index[lengths["n_query"] < config["finetune"]["max_length"]]}
    for path in made:
        ids = [json.loads(line)["id"] for line in project.read(path).splitlines()]
        assert len(ids) == 8
        assert {*ids} <= known
    left = f"selections.best: {24 - len(known)} of 24 examples are left out"
    for log in ("check_selection/tiny-llama/best", "draw_baseline/tiny-llama/best-random/selected"):
        assert left in project.log(f"tiny/{log}.log")


def test_examples_that_cannot_be_trained_on_are_refused_before_anything_is_trained_anew(project):
    planned = project.snakemake(RETRAINED, "-n", config=TRUTH)
    assert planned.jobs["check_losses"] == 1, planned.output
    ended = project.snakemake(RETRAINED, "--cores", "1", config=TRUTH)
    assert ended.returncode != 0
    said = "truth: 24 examples without a loss: "
    assert said in project.log("tiny/check_losses/tiny-llama.log")
    assert said in " ".join(ended.output.split())
    assert "train_loss" not in ended.output
    assert not list(project.path.glob("logs/tiny/retrain/**/*.log"))


def test_where_gradients_of_the_loss_and_truth_ask_the_way_out_is_one_of_both(project):
    config = {**TRUTH, "attribution": {"methods": ["length", "influence"], "train_loss": "response"}}
    ended = project.snakemake(str(dag.RESULTS / "data/losses.checked.json"), "--cores", "1", config=config)
    assert ended.returncode != 0
    said = " ".join(ended.output.split())
    assert "truth: 24 examples without a loss: " in said
    assert "train_loss: document" not in said, "truth would refuse that, too"

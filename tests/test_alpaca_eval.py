"""AlpacaEval's files: prompts in subsets, the base model's responses, and judgements that exist already."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dag
import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import ValidationError

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.config.training import Evaluation
from icprobe.errors import ConfigError, DataError
from icprobe.evaluation.judges.annotations import check_reference, read_annotations
from icprobe.evaluation.win_rates import win_rate
from icprobe.tables.checking import read_table

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "../shared/data/alpaca_eval"
PUBLISHED = ROOT / "../shared/data/annotations/OpenHermes-2.5-Mistral-7B.jsonl"
SUBSETS = {"helpful_base": 129, "koala": 156, "oasst": 188, "selfinstruct": 252, "vicuna": 80}


def prompts(name, count, **others):
    given = {"input": "", "generator": "base", **others}
    return [{"instruction": f"{name} {n}?", "output": f"base {name} {n}", **given} for n in range(count)]


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def table(**source):
    return read_table(source, extra=["subset", "generator"], needs_output=False)


# --- prompts


def test_a_prompts_subset_is_its_own_else_its_dataset_else_its_files_stem(tmp_path):
    write(tmp_path / "koala.json", prompts("k", 3))
    write(tmp_path / "other.json", prompts("v", 2, dataset="vicuna"))
    write(tmp_path / "third.json", prompts("s", 1, subset="mine", dataset="theirs"))
    found = table(path=[str(tmp_path / "*.json")])
    assert found["subset"].tolist() == ["koala"] * 3 + ["vicuna"] * 2 + ["mine"]
    assert found["row_number"].tolist() == [*range(6)]
    assert found["output"].tolist()[3] == "base v 0"


def test_a_mapping_names_the_subsets_whatever_the_files_say(tmp_path):
    one = write(tmp_path / "a.json", prompts("a", 2, dataset="vicuna"))
    two = write(tmp_path / "b.json", prompts("b", 1))
    assert table(subsets={"first": one, "second": two})["subset"].tolist() == ["first", "first", "second"]


def test_one_file_with_a_dataset_field_has_its_subsets(tmp_path):
    one = write(tmp_path / "all.json", prompts("a", 1, dataset="koala") + prompts("b", 1, dataset="oasst"))
    assert table(path=one)["subset"].tolist() == ["koala", "oasst"]
    assert "subset" not in table(path=write(tmp_path / "none.json", prompts("a", 1)))


def test_files_of_a_pattern_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        write(tmp_path / f"part-{number}.json", prompts(f"p{number}", 1))
    found = table(path=str(tmp_path / "part-*.json"))
    assert found["instruction"].tolist() == ["p1 0?", "p9 0?", "p10 0?"]


def test_an_id_that_two_files_share_is_refused_with_both_places(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.json", prompts(name, 1, id="x"))
    with pytest.raises(DataError, match=r"b\.json, row 1: the id 'x' is already used by .*a\.json, row 1"):
        table(path=[str(tmp_path / "a.json"), str(tmp_path / "b.json")])


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        table(path=[str(tmp_path / "*.json")])


@pytest.mark.skipif(not PROMPTS.exists(), reason=f"{PROMPTS} is absent")
def test_the_five_subsets_hold_805_prompts_with_the_base_models_responses():
    found = table(path=[str(PROMPTS / "*.json")])
    assert found["subset"].value_counts().to_dict() == SUBSETS
    assert found["id"].is_unique
    assert set(found["generator"]) == {"pythia-1b-deduped"}


def test_a_file_is_fetched_from_an_address_and_a_mistake_in_it_names_the_address(tmp_path):
    write(tmp_path / "koala.json", prompts("k", 2))
    write(tmp_path / "bad.json", [{"instruction": ""}])
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert table(url=f"{address}/koala.json")["instruction"].tolist() == ["k 0?", "k 1?"]
        with pytest.raises(DataError, match=rf'{address}/bad.json, row 1: "instruction" is empty'):
            table(url=f"{address}/bad.json")
        with pytest.raises(DataError, match=rf"{address}/absent.json: cannot be fetched"):
            table(url=f"{address}/absent.json")
        server.shutdown()


def test_a_file_of_a_hub_data_set_is_read_as_it_is(tmp_path, monkeypatch):
    import huggingface_hub

    local = write(tmp_path / "alpaca_eval.json", prompts("a", 1, dataset="koala"))
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        return local

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = table(hub="tatsu-lab/alpaca_eval", file="alpaca_eval.json", split="train")
    assert found["subset"].tolist() == ["koala"]
    assert asked == [("tatsu-lab/alpaca_eval", "alpaca_eval.json", {"repo_type": "dataset", "revision": None})]


# --- annotations


def annotation(number, preference, **others):
    return {
        "instruction": f"prompt {number}",
        "dataset": "koala",
        "output_1": "x" * 30,
        "generator_1": "base",
        "output_2": "y" * (20 + number),
        "generator_2": "tuned",
        "annotator": "gpt",
        "preference": preference,
        **others,
    }


def test_annotations_are_judgements_with_the_lengths_of_both_responses(tmp_path):
    rows = [annotation(0, 1.25), annotation(1, None), annotation(2, 0), annotation(3, 2, output_1=None, len_1=7)]
    found = read_annotations([write(tmp_path / "annotations.json", rows)])
    assert [row["preference"] for row in found] == [1.25, None, 1.5, 2.0]
    assert [row["length_base"] for row in found] == [30, 30, 30, 7]
    assert [row["length_response"] for row in found] == [20, 21, 22, 23]
    assert {(row["subset"], row["judge"]) for row in found} == {("koala", "gpt")}
    assert len({row["id"] for row in found}) == 4


def test_annotations_that_do_not_say_what_they_were_compared_with_are_taken(tmp_path):
    rows = [annotation(0, 1), annotation(1, 2, generator_1=None)]
    assert len(read_annotations([write(tmp_path / "a.json", rows)])) == 2


def test_annotations_of_one_prompt_share_its_id_across_files(tmp_path):
    one = read_annotations([write(tmp_path / "a.json", [annotation(0, 1), annotation(1, 1)])])
    two = read_annotations([write(tmp_path / "b.json", [annotation(1, 2, generator_2="other")])])
    assert one[1]["id"] == two[0]["id"] != one[0]["id"]


def test_prompts_that_differ_in_their_input_alone_are_two(tmp_path):
    rows = [annotation(0, 1, input=given) for given in ("one", "two", "")]
    ids = [row["id"] for row in read_annotations([write(tmp_path / "a.json", rows)])]
    assert len(set(ids)) == 3
    assert read_annotations([write(tmp_path / "b.json", [annotation(0, 2)])])[0]["id"] == ids[2]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([annotation(0, 2.5)], r"row 1: the preference is '2\.5'"),
        ([annotation(0, 1), annotation(1, "1")], "row 2: the preference is '1'"),
        ([annotation(0, 1), annotation(1, 2, generator_1="gpt4")], r"of 2 models \(generator_1: 'base', 'gpt4'\)"),
        ([{"preference": 1}], "needs its instruction"),
        ([annotation(0, 1), annotation(0, 2)], r"row 2: its prompt is judged at .*row 1, too, and would count twice"),
        ([annotation(0, 1, output_1=None, len_1="n/a")], r"row 1: len_1 is 'n/a'; it must be a number of characters"),
        ([annotation(0, 1), annotation(1, 1, generator_2="other")], r"2 models \('tuned', 'other'\)"),
        ([annotation(0, 1), annotation(1, 1, generator_2=None)], r"2 models \('tuned', one without a name\)"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(rows, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read_annotations([write(tmp_path / "a.json", rows)])


def test_one_of_several_generators_is_chosen_by_name(tmp_path):
    path = write(tmp_path / "a.json", [annotation(0, 1), annotation(0, 2, generator_2="other")])
    assert [row["preference"] for row in read_annotations([path], "other")] == [2.0]
    with pytest.raises(DataError, match="no row has the generator_2 'third'"):
        read_annotations([path], "third")


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"judge": "annotations"}, "needs a mapping annotations"),
        ({"base_responses": "given"}, "no gold answer"),
        ({"judge": "annotations", "annotations": {"a": {"path": "x"}, "b": {"path": "y", "method": "a"}}}, "twice"),
    ],
)
def test_contradictions_of_the_evaluation_are_refused(evaluation, words):
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    whole["evaluation"] |= evaluation
    with pytest.raises(ConfigError, match=words):
        load(whole, METHODS)


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"llm": {"base_url": "http://a/v1", "model": "m"}}, "write judge: llm beside it"),
        ({"annotations": {"a": {"path": "x"}}}, "write judge: annotations beside them"),
        ({"endpoint": {"base_url": "http://a/v1", "model": "m"}}, "write engine: endpoint beside it"),
    ],
)
def test_what_is_described_and_not_asked_for_is_refused(evaluation, words):
    with pytest.raises(ValidationError, match=words):
        Evaluation.model_validate(evaluation)
    asked = {"llm": {"judge": "llm"}, "annotations": {"judge": "annotations"}, "endpoint": {"engine": "endpoint"}}
    assert Evaluation.model_validate(evaluation | asked[next(iter(evaluation))])


def test_annotations_are_of_one_model():
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    whole["evaluation"] |= {"judge": "annotations", "annotations": {"a": {"path": "x"}}}
    assert load(whole, METHODS)
    (name,) = whole["models"]
    whole["model_sources"]["other"] = whole["model_sources"][name]
    with pytest.raises(ConfigError, match="they do not say of which model they are, and there are 2 models"):
        load({**whole, "models": [name, "other"]}, METHODS)


def test_annotations_against_different_models_are_not_compared(tmp_path):
    def judgements(against):
        return read_annotations([write(tmp_path / "a.json", [annotation(0, 1, generator_1=against)])])

    read = {"a all": judgements("base"), "b all": judgements(None)}
    check_reference(read)
    read["c all"] = judgements("gpt4")
    with pytest.raises(DataError, match=r"those of a all .* of 'base', those of c all against 'gpt4' \(generator_1\)"):
        check_reference(read)


# --- through the DAG


def test_annotations_and_given_base_responses_go_through_the_dag(tmp_path):
    """Both in one run: no model is prepared and nothing is generated or fine-tuned."""
    project = dag.new(tmp_path / "project")
    rng = np.random.default_rng(0)
    names = {"generator_1": "gpt4_1106_preview", "generator_2": "a"}
    rows = [annotation(n, 1 + rng.random(), dataset="koala" if n < 20 else "oasst", **names) for n in range(40)]
    better = [{**row, "preference": min(2, row["preference"] + 0.2), "generator_2": "b"} for row in rows]
    write(project.path / "annotations.json", rows + better)
    for subset in ("koala", "oasst"):
        write(project.path / f"{subset}.json", prompts(subset, 3, dataset=subset))
    config = {
        "experiment": "judged",
        "models": ["theirs"],
        "model_sources": {"tiny-llama": None, "theirs": {"source": "external"}},
        "data": {"eval": {"path": ["koala.json", "oasst.json"]}},
        "attribution": {"methods": ["random"], "aggregators": None},
        "bins": [],
        "figures": {"scatter": []},
        "finetune": {"methods": [], "all_data": False},
        "evaluation": {
            "judge": "annotations",
            "base_responses": "given",
            "annotations": {name: {"path": "annotations.json", "generator": name} for name in "ab"},
        },
    }
    if PUBLISHED.exists():
        config["evaluation"]["annotations"]["OpenHermes"] = {"path": str(PUBLISHED.resolve())}
    folder = "results/judged/theirs"
    ended = project.snakemake(
        f"{folder}/tables/win_rates.csv", f"{folder}/responses/base.jsonl", "--cores", "2", config=config
    )
    assert ended.returncode == 0, ended.output
    assert not ended.jobs.keys() & {"prepare_model", "generate", "generate_base", "fine_tune", "judge"}

    base = [json.loads(line) for line in project.read(f"{folder}/responses/base.jsonl").decode().splitlines()]
    assert [(row["subset"], row["output"], row["generator"]) for row in base] == [
        (subset, f"base {subset} {number}", "base") for subset in ("koala", "oasst") for number in range(3)
    ]
    assert base[0]["instruction"] == "koala 0?"

    found = pd.read_csv(project.path / folder / "tables/win_rates.csv", dtype={"seed": str})
    contract = "model domain method bin subset seed n win_rate standard_error low high discrete_win_rate n_wins"
    assert list(found) == [
        *contract.split(),
        "n_wins_base",
        "n_draws",
        "length_controlled_win_rate",
        "length_control_note",
    ]
    found = found.set_index(["method", "subset", "seed"]).sort_index()
    for subset in ("koala", "oasst", "overall"):
        chosen = [row["preference"] for row in rows if subset in (row["dataset"], "overall")]
        for name, value in win_rate(chosen).items():
            assert found.loc[("a", subset, "all"), name] == pytest.approx(value, abs=1e-12), (subset, name)
    differences = pd.read_csv(project.path / folder / "tables/differences.csv")
    row = differences[(differences["method_a"] == "a") & (differences["method_b"] == "b")].iloc[0]
    gain = np.mean([b["preference"] - a["preference"] for a, b in zip(rows, better, strict=True)])
    assert row["difference"] == pytest.approx(-100 * gain, abs=1e-9)
    assert row["p_value_holm"] < 0.05
    assert "**" in project.read(f"{folder}/tables/win_rates.md").decode()
    assert r"\toprule" in project.read(f"{folder}/tables/win_rates.tex").decode()

    if PUBLISHED.exists():
        row = found.loc[("OpenHermes", "overall", "all")]
        assert abs(row["win_rate"] - 10.340415705751552) < 1e-10
        assert abs(row["standard_error"] - 0.935655389929366) < 1e-10
        assert abs(row["discrete_win_rate"] - 9.503105590062113) < 1e-10
        assert row[["n_wins", "n_wins_base", "n_draws"]].tolist() == [75, 727, 3]
        assert found.loc["OpenHermes"]["n"][:, "all"].drop("overall").to_dict() == SUBSETS


def test_the_whole_paper_is_planned(tmp_path):
    project = dag.new(tmp_path / "project")
    planned = dag.forked(["-n", "--nocolor", "all", "--configfile", "configs/paper.yaml"], project.path)
    assert planned.returncode == 0, planned.output
    jobs = planned.jobs
    methods, bins = 4, 5
    models = methods * bins + 1
    for rule in ("subset", "fine_tune", "generate", "judge"):
        assert jobs[rule] == models, rule
    for rule in ("prepare_model", "prepare_eval", "generate_base", "chain", "tabulate_win_rates", "report"):
        assert jobs[rule] == 1, rule
    assert jobs["attribute_influence"] == 64

"""The profiles of clusters: each plans the whole experiment, and the workflow knows of none of them."""

import importlib.util
import re
import subprocess

import dag
import pytest
import yaml

PLUGINS = {"slurm": "slurm", "profiles/kubernetes": "kubernetes", "profiles/generic": "cluster_generic"}
ATTRIBUTION = {"attribute", "attribute_influence", "attribute_ekfac", "attribute_step"}
# Submitted, too, and on one machine beside others.
NO_MODEL = {"correlate", "chain", "train_regressor", "value_points", "correlate_points"}
HEAVY = {"prepare_model", *ATTRIBUTION, "fine_tune", "generate", "generate_base", *NO_MODEL}
HEAVY |= {"measure_rates", "measure_outcomes", "retrain", "train_trajectory", "sum_covariances", "sum_eigenvalues"}
HEAVY |= {"embed_examples", "fisher_bases"}
HEAD = r"^ *(?:use rule \w+ as|rule) (?=\w+(?: with)?:)"
TABLES = {"select_tasks", "find_duplicates", "prepare_train", "prepare_eval", "measure_lengths", "measure_prompts"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return dag.new(tmp_path_factory.mktemp("planned"))


@pytest.fixture(scope="module")
def planned(project):
    """The jobs without a profile of a cluster."""
    return project.snakemake("all", "-n", "--cores", "2").jobs


def needs_plugin(name, kind="executor"):
    if not importlib.util.find_spec(f"snakemake_{kind}_plugin_{name}"):
        pytest.skip(f"needs snakemake-{kind}-plugin-{name.replace('_', '-')}")


@pytest.mark.parametrize("profile", PLUGINS)
def test_a_profile_plans_the_whole_experiment(profile, project, planned, tmp_path):
    needs_plugin(PLUGINS[profile])
    arguments = []
    if profile == "profiles/kubernetes":
        needs_plugin("fs", kind="storage")
        # The volume: what is given lies there, as what is made will.
        volume = tmp_path / "volume"
        for path in ("resources/demo", "train.jsonl"):
            (volume / path).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", project.path / path, volume / path], check=True)
        arguments = ["--default-storage-prefix", str(volume)]
    ended = project.snakemake("--profile", profile, "all", "-n", *arguments)
    assert ended.returncode == 0, ended.output
    assert ended.jobs == planned
    assert not re.search("warn|deprecat", ended.output, re.IGNORECASE), ended.output


@pytest.mark.parametrize("profile", PLUGINS)
def test_rules_without_threads_in_a_profile_are_local_or_ask_for_one(profile):
    """A rule that asks for all cores of one machine would be given those of this one, and might wait for ever."""
    settings = yaml.safe_load((dag.ROOT / profile / "config.yaml").read_text())
    greedy = set()
    for path in (dag.ROOT / "rules").glob("*.smk"):
        for rule in re.split(HEAD, path.read_text(), flags=re.MULTILINE)[1:]:
            if re.search(r"^\s*threads: THREADS", rule, re.MULTILINE):
                greedy.add(re.match(r"\w+", rule)[0])
                assert re.search(r"^\s*heavy=", rule, re.MULTILINE), f"{rule[:40]}: two of it would run at once"
    assert greedy == set(settings["set-threads"])
    assert set(settings["groups"]) == TABLES


def test_what_is_submitted_is_heavy_or_in_a_group():
    found = set()
    for path in (dag.ROOT / "rules").glob("*.smk"):
        # A rule that is made of another is not local because that one is.
        for rule in re.split(HEAD, path.read_text(), flags=re.MULTILINE)[1:]:
            if "localrule: True" not in rule:
                found.add(re.match(r"\w+", rule)[0])
    assert found == HEAVY | TABLES


def test_the_docs_list_the_jobs_of_a_cluster():
    text = (dag.ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    titles = {"Heavy jobs": HEAVY - NO_MODEL, "Jobs without a model": NO_MODEL, "One job for the tables": TABLES}
    for title, rules in titles.items():
        item = re.search(rf"^- \*\*{title}\*\*(.*?)^- ", text, re.MULTILINE | re.DOTALL)[1]
        assert set(re.findall(r"`(\w+)`", item)) == rules


@pytest.mark.parametrize("profile", PLUGINS)
def test_light_jobs_leave_a_login_nodes_cores_to_others(profile):
    settings = yaml.safe_load((dag.ROOT / profile / "config.yaml").read_text())
    docs = (dag.ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    assert f"`local-cores: {settings['local-cores']}`" in docs


def test_a_job_runs_through_the_generic_profile(project, tmp_path):
    """With a shell in the place of a batch system."""
    needs_plugin("cluster_generic")
    here = project.copy(tmp_path)
    ended = here.snakemake(
        "--profile", "profiles/generic", "--cluster-generic-submit-cmd", "sh", "--seconds-between-status-checks", "1",
        "resources/models/tiny-llama",
    )  # fmt: skip
    assert ended.returncode == 0, ended.output
    assert (here.path / "resources/models/tiny-llama/manifest.json").is_file()
    assert "Nothing to be done" in here.snakemake("resources/models/tiny-llama", "-n", "--cores", "1").output


def test_neither_rules_nor_scripts_know_a_batch_system_or_a_shared_tmp():
    files = [dag.ROOT / "Snakefile", *(dag.ROOT / "rules").glob("*.smk"), *(dag.ROOT / "workflow").rglob("*.py")]
    files += (dag.ROOT / "src").rglob("*.py")
    assert len(files) > 60
    for path in files:
        code = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"SLURM_|\b(sbatch|squeue|srun|qsub|kubectl)\b|[\"'](/var)?/tmp\b", code), path

"""Experiments that mean different models by one name live side by side."""

import dag


def test_another_experiments_model_of_the_same_name_makes_nothing_anew(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    assert not project.snakemake("models", "-n", config={"experiment": "other"}).jobs, "the same source is shared"
    other = {"experiment": "other", "model_sources": {"tiny-llama": {"seed": 1}}}
    ended = project.snakemake("models", "--cores", "1", config=other)
    assert ended.returncode == 0, ended.output
    assert ended.jobs == {"prepare_model": 1, "models": 1}
    assert project.snakemake("all", "-n").jobs == {}
    first, second = sorted((project.path / "resources/models").glob("tiny-llama-*/model.safetensors"))
    assert first.read_bytes() != second.read_bytes()
    # Their name alone, which was the directory's before, is that of the latest.
    assert (project.path / "resources/models/tiny-llama/manifest.json").is_file()

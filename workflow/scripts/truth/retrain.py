"""A chunk of the trainings that methods are held against: each trained anew, and asked how likely the answers are."""

from pathlib import Path

from icprobe import artifacts
from icprobe.tables import parquet
from icprobe.tables.checking import records
from icprobe.texts.chat import prompts_of
from icprobe.texts.completions import completions, longest
from icprobe.truth.sets import trainings
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    # Torch reads the environment that the job sets when it is imported.
    from icprobe.engine.batching import parse_shard
    from icprobe.evaluation.outcomes import held_out_answers
    from icprobe.texts.tokenizing import load_tokenizer
    from icprobe.training.fine_tune import labelled, log_cut
    from icprobe.truth.bank import Bank, retrain

    files, params, wildcards = snakemake.input, snakemake.params, snakemake.wildcards
    train = parquet.read_parquet(files.train)
    table = parquet.read_parquet(files.sets)
    all_trainings = trainings(wildcards.part, table, list(train["id"]), params.seeds)
    number, of = parse_shard(wildcards.chunk)
    mine = all_trainings[len(all_trainings) * (number - 1) // of : len(all_trainings) * number // of]
    prompts, tokenizer = prompts_of(params.templates), load_tokenizer(files.base)
    limit = artifacts.read_manifest(files.base)["max_positions"]
    asked = {name: parquet.read_parquet(files.get(name)) for name in params.sets}
    answers = held_out_answers(asked, prompts, tokenizer, limit)
    length = longest(params.settings["max_length"], limit)
    encoded, counts = completions(tokenizer, records(train), prompts, length)
    log_cut(len(train), counts, length)
    examples = {id: labelled(one) for id, one in zip(train["id"], encoded, strict=True) if one is not None}
    identity = [artifacts.content_digest(files.base), artifacts.content_digest(files.base_manifest)]
    identity += [params.settings, params.code]
    identity += [[answer.set, answer.id, answer.encoded.ids, answer.encoded.n_context] for answer in answers]
    bank = Bank(Path(params.bank) / artifacts.digest(identity)[:32])
    outcomes = retrain(files.base, tokenizer, mine, examples, answers, params.settings, bank)
    parquet.write_parquet(outcomes, snakemake.output[0])
    run.summary(trainings=len(mine), answers=len(answers))

"""`make bench`: runs the comparisons, writes benchmarks/results/*.json, docs/performance.md and its figures.

python -m benchmarks.run [--only icp,influence] [--examples 40] [--tasks 12] [--repeats 3] [--data FOLDER] …
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.comparisons import Comparison, comparisons, gpu
from benchmarks.texts import ROOT, SHAPES, SHORT, Source, Work
from icprobe.errors import IcprobeError

MODEL = "smollm2-135m-instruct"
OTHERS = ("budget", "import", "waiting")  # of their own kinds
ASKED = ("waiting",)  # for half an hour on a machine that is quiet; only where it is named


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    made.add_argument("--examples", type=int, default=40, help="examples; each comparison takes its share of them")
    made.add_argument("--tasks", type=int, default=12, help="tasks of the comparisons that name no number")
    made.add_argument("--only", default="", help="comparisons by name (icp-12) or kind (icp), with commas between")
    made.add_argument("--contestants", default="", help="only these contestants (names as in benchmarks/worker.py)")
    made.add_argument("--repeats", type=int, default=3, help="rounds; the median is what counts")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--data", default="../shared/data", help="folder of the texts; resources/demo always works")
    made.add_argument("--model", help=f"directory of a prepared model; default: {MODEL} as config.yaml describes it")
    made.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape take the model's place")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on cuda bfloat16")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--peak-flops", type=float, help="the device's dense peak in this dtype, for the MFU")
    made.add_argument("--batch-tokens", type=int, help="default: 1024, on cuda 16384")
    made.add_argument("--max-tokens", type=int, default=SHORT, help="documents have fewer tokens; on cuda any length")
    made.add_argument("--patience", type=float, default=900, help="seconds of a round, after which it is stopped")
    made.add_argument("--whole", action="store_true", help="measure whole what is otherwise scaled from a part")
    made.add_argument("--results", default="benchmarks/results", help="folder of the JSON files")
    made.add_argument("--page", default="docs/performance.md")
    made.add_argument("--list", action="store_true", help="name the comparisons and end")
    return made


def chosen(options: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """(comparisons, others) that the options ask for. Raises SystemExit for a name that is none."""
    every = gpu() if options.device == "cuda" else [*comparisons(options.whole), *gpu()]
    wanted = [name for name in options.only.split(",") if name]
    known = {c.key for c in every} | {c.group for c in every} | set(OTHERS)
    for name in wanted:
        if name not in known:
            sys.exit(f"--only {name}: there is no such comparison; there are {', '.join(sorted(known))}.")
    if not wanted:
        wanted = [c.key for c in every if c.group != "gpu" or options.device == "cuda"]
        wanted += [name for name in OTHERS if name not in ASKED] if options.device == "cpu" else []
    return [c for c in every if c.key in wanted or c.group in wanted], [name for name in OTHERS if name in wanted]


def limited(comparison: Comparison, contestants: str) -> Comparison:
    """The comparison with these contestants alone, where any are named."""
    names = {name for name in contestants.split(",") if name}
    if not names:
        return comparison
    entries = tuple(entry for entry in comparison.entries if entry.contestant in names)
    return Comparison(**{**vars(comparison), "entries": entries})


def prepared(model: str | None) -> str:
    """The directory of the model, absolute; the configuration's own model is prepared where it is not there yet."""
    if model:
        return str(ROOT / model)
    import yaml

    from icprobe.attribution import METHODS
    from icprobe.config import load

    config = load(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")), METHODS)
    path = ROOT / config.model_directory(MODEL)
    if not (path / "manifest.json").is_file():
        from icprobe.engine.admission import admit
        from icprobe.engine.models import prepare

        print(f"preparing {MODEL} …", flush=True)
        prepare(config.model_sources[MODEL].model_dump(mode="json"), path, admit)
    return str(path)


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    wanted, others = chosen(options)
    if options.list:
        for comparison in wanted:
            print(f"{comparison.key:16} {comparison.title}: {', '.join(entry.name for entry in comparison.entries)}")
        print("\n".join(others if options.only else OTHERS))
        return
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    options.batch_tokens = options.batch_tokens or (16384 if on_gpu else 1024)
    results, page, data = (
        Path(path) if Path(path).is_absolute() else ROOT / path
        for path in (options.results, options.page, options.data)
    )
    results.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, flush=True)

    def save(record: dict[str, Any]) -> None:
        path = results / f"{record['comparison']}.json"
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")

    try:
        options.model = prepared(options.model)
        if wanted or "waiting" in others:
            from benchmarks.measure import measure

            source = Source(str(data), Work([], [], options.model).tokenizer)
            for comparison in wanted:
                limit = limited(comparison, options.contestants)
                if limit.entries:
                    save(measure(limit, source, options, say))
        if "budget" in others:
            from benchmarks.budgeted import budgeted

            save(budgeted(data, say))
        if "import" in others:
            from benchmarks.startup import startup

            save(startup(options, say))
        if "waiting" in others:
            from benchmarks.waiting import waiting

            save(waiting(source, options, say))
    except IcprobeError as error:
        sys.exit(str(error))
    tables.write(results, page)
    say(f"wrote {results.name}/*.json and {page.name}")


if __name__ == "__main__":
    main()

"""Selections as a data set for others: a folder with a card, which `datasets` loads, and which can go to the hub."""

import glob
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import pandas as pd
import yaml
from tabulate import tabulate

from icprobe import jsonl
from icprobe.errors import EndpointError, reason, several
from icprobe.tables.checking import TEXTS
from icprobe.tables.parquet import read_parquet
from icprobe.training.cards import IN_MESSAGES

logger = logging.getLogger(__name__)

WORDS = {
    "id": "the row's id",
    **dict.fromkeys(TEXTS, "a text of the row"),
    "prompt": "what the model reads, by the experiment's templates",
    "completion": "the response that follows",
    "messages": "the row as a conversation, for a chat template (JSON, if messages hold more than role and content)",
    "tools": "the tools that the conversation may call, in JSON",
    "row_number": "the row's number in the source",
    "n_query": "tokens of the query",
    "n_target": "tokens of the response",
}


def are_plain(files: Sequence[str | Path]) -> bool:
    """Whether all messages of these files have a role and a text alone, so that they can be lists in every table."""
    turns = (turn for file in files for row in jsonl.read(file) for turn in row["messages"])
    return all(set(turn) == {"role", "content"} and isinstance(turn["content"], str) for turn in turns)


def rows(subset: str | Path, messages: str | Path, scores: str | Path, plain: bool) -> pd.DataFrame:
    """The rows of a selection, in its order: texts, the two forms that trainers take, labels, lengths, and the score
    and rank of every method.

    subset, messages: the files of the selection; scores: the experiment's table of scores; plain: whether messages are
    lists, and not JSON (`are_plain`, of all tables alike). A prompt that is a
    conversation stands in `messages` alone.
    """
    chosen, spoken = pd.DataFrame(jsonl.read(subset)).drop(columns="score"), jsonl.read(messages)
    if isinstance(chosen["prompt"].iloc[0], list):
        chosen = chosen.drop(columns=["prompt", "completion"])
    turns = [row["messages"] for row in spoken]
    chosen["messages"] = turns if plain else [jsonl.line(row).rstrip("\n") for row in turns]
    if any("tools" in row for row in spoken):
        chosen["tools"] = [jsonl.line(row["tools"]).rstrip("\n") if row.get("tools") else None for row in spoken]
    known = read_parquet(scores)
    known = known.drop(columns=[name for name in known if name in chosen and name != "id"]).set_index("id")
    return pd.concat([chosen, known.loc[chosen["id"]].reset_index(drop=True)], axis=1)


def card(
    title: str,
    data_sets: pd.DataFrame,
    columns: Sequence[str],
    asks: Mapping[str, str],
    facts: Mapping[str, Any],
    licence: str | None,
    hub: str | None,
    in_json: bool = False,
) -> str:
    """The README of the data set: what it holds, how it was chosen, how to load it.

    data_sets: table name, model, rows, chosen (words). asks: method -> the question that it puts to an example. facts:
    name -> value, of the experiment. in_json: whether `messages` are JSON (`rows`) in any table.
    """
    files = [{"config_name": name, "data_files": f"data/{name}.parquet"} for name in data_sets["name"]]
    metadata = {"license": licence, "tags": ["icprobe", "data-selection", "instruction-tuning"], "configs": files}
    held = {name: value for name, value in metadata.items() if value is not None}
    of_methods = [f"`score_{method}`, `rank_{method}` (1 is best): {words}" for method, words in asks.items() if method]
    others = [f"`{name}`: {WORDS[name]}" for name in columns if name in WORDS]
    labels = [
        name for name in columns if name not in WORDS and not name.startswith(("score_", "rank_", "mean_effect_"))
    ]
    first, escaped = data_sets["name"].iloc[0], data_sets.map(lambda cell: cell.replace("|", "\\|"))
    load = f'load_dataset("{hub or "this folder"}", "{first}", split="train")'
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(held, sort_keys=False)}---\n",
            f"# {title}\n",
            f"{several(len(data_sets), 'data set')} of instruction examples, chosen by what an example is worth for "
            "given tasks, as [icprobe](https://arxiv.org/abs/2407.12259) estimates it, or drawn at random to "
            "compare with.\n",
            tabulate(escaped, headers="keys", tablefmt="github", showindex=False, disable_numparse=True) + "\n",
            "## Load it\n",
            f"    from datasets import load_dataset\n    rows = {load}\n",
            *_of_trl("prompt" in columns, in_json),
            *(() if in_json else _of_trainers(first, hub)),
            "## Columns\n",
            "\n".join(f"- {words}" for words in [*others, *of_methods]),
            *([f"- {', '.join(f'`{name}`' for name in labels)}: as in the source"] if labels else []),
            "\n## How it was made\n",
            "\n".join(f"- {name}: {value}" for name, value in facts.items()),
            f"- licence of the source: {licence or 'not stated'}\n",
        ]
    )


def _of_trl(prompts: bool, in_json: bool) -> list[str]:
    """Which columns trl takes, and what has to be done before trainers can read messages."""
    pair = '`rows.select_columns(["prompt", "completion"])`'
    forms = [*([pair] if prompts else []), *([] if in_json else ['`rows.select_columns(["messages"])`'])]
    told = [f"trl's `SFTTrainer` takes {' or '.join(forms)}, without other columns.\n"] if forms else []
    json_first = "`messages` are JSON, for some hold more than role and content: trainers take `json.loads` of each.\n"
    return [*told, *([json_first] if in_json else [])]


def _of_trainers(name: str, hub: str | None) -> list[str]:
    """How axolotl and LLaMA-Factory are told of one data set."""
    where = {"path": hub, "name": name} if hub else {"path": f"data/{name}.parquet", "ds_type": "parquet"}
    axolotl = {"datasets": [{**where, "split": "train", "type": "chat_template"}]}
    factory = {
        name: {
            **({"hf_hub_url": hub, "subset": name} if hub else {"file_name": f"data/{name}.parquet"}),
            **IN_MESSAGES,
        }
    }
    return [
        f"axolotl, in its configuration:\n\n{indent(yaml.safe_dump(axolotl, sort_keys=False), '    ')}",
        f"LLaMA-Factory, in `dataset_info.json`:\n\n{indent(json.dumps(factory, indent=2), '    ')}\n",
    ]


def push(folder: str | Path, files: Sequence[str], repository: str, private: bool) -> dict[str, Any]:
    """Uploads these files of a folder to the hub as a data set, in one commit: {"repository", "url", "commit",
    "private"}. What else lies there, such as an earlier configuration's selections, stays.

    The token is the hub's own (HF_TOKEN, or `hf auth login`); HF_ENDPOINT is another hub's address. A data set that is
    there already must be as private as is asked. Raises EndpointError, one sentence, where the hub refuses.
    """
    import httpx2  # the hub library's own
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise EndpointError("publish: HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it.")
    if get_token() is None:
        raise EndpointError("publish: there is no token of the hub; set HF_TOKEN, or run `hf auth login`.")
    api = HfApi(library_name="icprobe")
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        found = api.repo_info(repository, repo_type="dataset")
        if bool(found.private) != private:
            raise EndpointError(
                f"publish: {repository} is {'private' if found.private else 'public'} already, and export.private is "
                f"{str(private).lower()}; change one of them."
            )
        done = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[*map(glob.escape, files)],
            commit_message="Selections by icprobe",
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise EndpointError(f"publish: the hub did not take {repository}: {reason(error)}") from None
    return {"repository": repository, "url": str(done.commit_url), "commit": done.oid, "private": private}

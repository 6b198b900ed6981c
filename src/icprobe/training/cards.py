"""What stands beside a selection's files for those who train on it: how they are loaded, and what is known of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from icprobe.errors import several
from icprobe.tables.checking import records
from icprobe.tables.parquet import read_parquet

# By LLaMA-Factory's names of keys and roles. Not its format `openai`, which writes a system message of its own.
IN_MESSAGES = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}
# The front matter is the Hugging Face hub's: each file is a configuration of its own.
CARD = """\
---
configs:
- config_name: default
  data_files: {name}.jsonl
- config_name: messages
  data_files: {name}.messages.jsonl
- config_name: scores
  data_files: {name}.scores.jsonl
---

# {title}

{n} of {of}, {how}, by [icprobe](https://arxiv.org/abs/2407.12259)'s experiment {experiment} with the model {model}:

```yaml
{selection}```

- `{name}.jsonl`: `id`, `instruction`, `input`, `output`, `score`, and `prompt` and `completion` as the experiment's
  templates render them
- `{name}.messages.jsonl`: `id`, `score`, `messages`: the conversation, or one turn of the user and one of the assistant
- `{name}.scores.jsonl`: the same examples in the same order (`place`), with texts, labels, lengths, and each method's
  score and its rank among all examples

Here is how trainers read them, started in this folder. MODEL is yours.

**trl**, on prompts and completions; with `{name}.messages.jsonl` by the model's chat template:

```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

data = load_dataset("json", data_files="{name}.jsonl", split="train")
SFTTrainer("MODEL", SFTConfig("out"), train_dataset=data).train()
```

`load_dataset(".", "messages", split="train")` reads a file by the name of its configuration, here, or from the hub if
you upload the folder: then others read your texts.

**axolotl**, in its configuration; the loss is on the assistant's turns:

```yaml
base_model: MODEL
datasets:
  - path: {name}.messages.jsonl
    ds_type: json
    type: chat_template
```

**LLaMA-Factory**, in its configuration; `dataset_info.json` in this folder names the file:

```yaml
model_name_or_path: MODEL
dataset_dir: .
{dataset}
```

It skips conversations in which user and assistant do not take turns, and does not read calls of tools from this file.
"""


def card(
    title: str,
    selection: Mapping[str, Mapping[str, Any]],
    baseline: str,
    n: int,
    of: int,
    experiment: str,
    model: str,
    name: str,
) -> str:
    """Writes what a data set is and how it is loaded, in Markdown.

    title: its name. selection: {name: its keys, as the configuration writes them}. baseline: which one of it it is, ""
    for itself. n, of: how many examples it has, and how many there are. name: of its files, without their endings.
    """
    how = f"drawn at random ({baseline}) to compare with the selection below" if baseline else "chosen"
    return CARD.format(
        title=title,
        dataset=yaml.safe_dump({"dataset": title}).rstrip(),  # quoted where it is no text as it stands, such as `on`
        n=f"{n:,}",
        of=several(of, "example"),
        how=how,
        experiment=experiment,
        model=model,
        selection=yaml.safe_dump({"selections": dict(selection)}, sort_keys=False, allow_unicode=True),
        name=name,
    )


def dataset_info(title: str, name: str) -> dict[str, Any]:
    """What LLaMA-Factory reads as dataset_info.json: the data set `title`, in the messages of the files `name`."""
    return {title: {"file_name": f"{name}.messages.jsonl", **IN_MESSAGES}}


def scores_of(ids: Sequence[str], path: str | Path) -> list[dict[str, Any]]:
    """Reads the rows of a model's table of scores that these ids have, in their order, with `place` from 1 before."""
    table = read_parquet(path).set_index("id", drop=False).loc[list(ids)]
    table.insert(0, "place", range(1, len(table) + 1))
    return records(table)

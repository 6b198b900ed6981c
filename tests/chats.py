"""Conversations for tests: chat templates, rows, and what is made of them."""

from icprobe.attribution.one_shots import OneShots
from icprobe.config import Templates
from icprobe.tables.checking import read_table
from icprobe.texts.chat import prompts_of
from icprobe.texts.completions import completions
from icprobe.texts.prompts import encode

MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set system = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OURS = {"mistral": MISTRAL, "zephyr": ZEPHYR, "chatml": CHATML}
# trl has templates of these as they are published, and with generation blocks for training.
THEIRS = ("llama3", "qwen2_5", "qwen3_instruct_2507", "gemma", "gemma3", "cohere", "cohere2", "lfm2")
CONVERSATIONS = {
    "one": [("user", "Name a river."), ("assistant", "The Drava.")],
    "several": [("user", "2+2?"), ("assistant", "4"), ("user", "And 3+3?"), ("assistant", "6")],
    "system": [
        ("system", "Be brief."),
        ("user", "2+2?"),
        ("assistant", "4"),
        ("user", "Name it"),
        ("assistant", "end"),
    ],
    "empty system": [("system", ""), ("user", "Hi"), ("assistant", "Yo")],
    "unicode": [("user", "Größe? 世界"), ("assistant", "🙂 e\u0301 ﬁ\u2028 Ⅷ")],
    "long": [(role, f"{role} {n}") for n in range(100) for role in ("user", "assistant")],
}


def row(turns, **others):
    messages = [{"role": role, "content": content} for role, content in turns]
    return read_table({"path": "rows", "rows": [{"messages": messages, **others}]}).iloc[0].to_dict()


def chat(template=None, **settings):
    return prompts_of({**Templates().model_dump(), "format": "chat", "chat_template": template, **settings})


def labelled(tokenizer, prompts, *rows):
    (encoded, *_), _ = completions(tokenizer, rows, prompts, 100_000)
    return [*encoded.ids], [int(place in encoded.targets) for place in range(len(encoded.ids))]


TASKS = [row(CONVERSATIONS[name], id=f"t{n}") for n, name in enumerate(("one", "unicode", "several"))]
EXAMPLES = [row(CONVERSATIONS[name], id=f"z{n}") for n, name in enumerate(("several", "system", "one", "empty system"))]


def assert_whole(tokenizer, prompts, examples, tasks):
    """That each one-shot context has the tokens of the pair's whole text; gives the bound prompts and the OneShots."""
    shots, bound = OneShots(tokenizer, prompts, tasks), prompts.of(tokenizer)
    for example in examples:
        prefix, suffixes = shots.encode(example, range(len(tasks)))
        for task, suffix in zip(tasks, suffixes, strict=True):
            whole = encode(tokenizer, bound.one_shot(example, task), bound.target(task))
            assert (*prefix, *suffix.ids) == whole.ids
            assert len(prefix) + suffix.first == whole.n_context
            assert suffix.ids[suffix.first :] == whole.ids[whole.n_context :]
    return bound, shots

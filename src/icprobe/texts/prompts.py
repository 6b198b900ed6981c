"""Renders the texts of examples and tasks from sandboxed Jinja2 templates. Data are never run as templates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from icprobe.errors import ConfigError, reason
from icprobe.texts import control_tokens
from icprobe.texts.control_tokens import Change, Part, Text
from icprobe.texts.conversations import check_one_exchange, flat

# fmt: off
FILTERS = {
    "capitalize", "count", "d", "default", "first", "join", "last", "length", "lower", "replace", "reverse", "string",
    "title", "trim", "truncate", "upper", "wordcount",
}
METHODS = {
    "capitalize", "endswith", "join", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rstrip", "split",
    "splitlines", "startswith", "strip", "title", "upper",
}
# fmt: on


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2 for texts alone: no attribute leads out of a text, and nothing in a line grows without bound."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        self.filters = {"flat": flat, **{name: self.filters[name] for name in sorted(FILTERS)}}
        self.globals = {}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        raise SecurityError(f"a template has no operator {operator}")

    def is_safe_callable(self, obj: Any) -> bool:
        text_method = type(getattr(obj, "__self__", None)) is str and not isinstance(obj, MethodType)
        return text_method and getattr(obj, "__name__", None) in METHODS


class Prompts:
    """The templates of one experiment: makes query, target, document and contexts of its rows.

    templates: the configuration's `templates` as a mapping (without `bos` it is none), and `special_tokens` of its
    `data` (default: text). Raises ConfigError for a template that does not parse or names an unknown variable.
    """

    def __init__(self, templates: dict[str, str]) -> None:
        environment = Sandbox()
        self._templates = {}
        for name in ("query", "target", "one_shot_prefix"):
            try:
                self._templates[name] = environment.from_string(templates[name])
            except Exception as error:  # a template is the user's program, and what it raises the user's mistake
                raise ConfigError(f"config: templates.{name}: {reason(error)}") from None
        self.separator = templates["separator"]
        self._special_tokens = templates.get("special_tokens", "text")
        self._begins = templates.get("bos") == "auto"

    @classmethod
    def of_queries(cls, templates: dict[str, str]) -> "Prompts":
        """Knows `query` alone, so that a change of the other templates repeats no job that uses these."""
        return cls({"target": "", "one_shot_prefix": "", "separator": "", **templates})

    def _render(self, template: str, **values: Any) -> str:
        try:
            return self._templates[template].render(**values)
        except Exception as error:  # see above
            raise ConfigError(f"config: templates.{template}: {reason(error)}") from None

    def _text(self, row: dict[str, Any], template: str, values: Callable[[Change], dict[str, Any]]) -> Text:
        def render(change: Change) -> str:
            return self._render(template, **values(change))

        begins = self._begins and template != "target"
        return Text(render(_as_it_is), (Part(render, row.get("id")),), self._special_tokens, begins)

    def of(self, tokenizer: Any) -> "Prompts":
        """The prompts of a model: Jinja templates are the same for all of them."""
        return self

    def query(self, row: dict[str, Any]) -> Text:
        """Renders what the model reads before the response; sees instruction and input alone.

        Raises DataError for a conversation of several turns.
        """
        check_one_exchange(row)
        words = {"instruction": row["instruction"], "input": row.get("input")}
        return self._text(row, "query", lambda change: {name: change(value) for name, value in words.items()})

    def target(self, row: dict[str, Any]) -> Text:
        """Renders the response as it follows the query."""
        return self._text(row, "target", lambda change: {"output": change(row["output"])})

    def document(self, row: dict[str, Any]) -> Text:
        """Renders query + target."""
        return self.query(row) + self.target(row)

    def one_shot_prefix(self, example: dict[str, Any]) -> Text:
        """Renders what precedes separator + query(task) when the example stands in the context."""
        return self.few_shot_prefix([example])

    def few_shot_prefix(self, examples: Sequence[dict[str, Any]]) -> Text:
        """The same of several examples: their documents with the separator between them stand where one's does."""
        documents = [self.document(example) for example in examples]

        def values(change: Change) -> dict[str, str]:
            return {"document": self.separator.join(document.again(change) for document in documents)}

        return self._text(examples[0], "one_shot_prefix", values)

    def one_shot(self, example: dict[str, Any], task: dict[str, Any]) -> Text:
        """Renders the context of a task given one example."""
        return self.few_shot([example], task)

    def few_shot(self, examples: Sequence[dict[str, Any]], task: dict[str, Any]) -> Text:
        """Renders the context of a task given several."""
        return self.few_shot_prefix(examples) + self.one_shot_suffix(task)

    def one_shot_suffix(self, task: dict[str, Any]) -> Text:
        """Renders what of the context follows the example."""
        return self.separator + self.query(task)

    def splits(self, tasks: Sequence[dict[str, Any]]) -> bool:
        """Whether `one_shot` is `one_shot_prefix` and then `one_shot_suffix`: always."""
        return True

    def exchange(self, instruction: str, output: str) -> str:
        """Renders an exchange as plain text, query + target."""
        return self._render("query", instruction=instruction, input="") + self._render("target", output=output)

    def shown(self, document: str) -> str:
        """Renders the one-shot prefix of a document that is text already."""
        return self._render("one_shot_prefix", document=document)


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Encoded:
    """Token ids of context + target; the first `n_context` are the context, the others the target.

    mean: its loss is divided by the number of its target's tokens, and so is the gradient. among: places of the
    target's tokens where they are not all behind the context, as those of several turns.
    """

    ids: tuple[int, ...]
    n_context: int
    mean: bool = False
    among: tuple[int, ...] | None = None

    @property
    def targets(self) -> Sequence[int]:
        """Places of the target's tokens."""
        return range(self.n_context, len(self.ids)) if self.among is None else self.among

    @property
    def n_target(self) -> int:
        return len(self.targets)


def token_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokenises one text, with no special tokens added; see `control_tokens.token_ids`."""
    return tuple(control_tokens.token_ids(tokenizer, [text])[0])


def encode(tokenizer: Any, context: str, target: str) -> Encoded:
    """Tokenises context + target jointly; the target begins behind the context (`border`)."""
    whole = token_ids(tokenizer, context + target)
    return Encoded(whole, border(tokenizer, context, context + target, token_ids(tokenizer, context), whole))


def border(tokenizer: Any, context: str, text: str, alone: Sequence[int], whole: Sequence[int]) -> int:
    """Finds where the target begins in the tokens of a text, context + target: the number of tokens before it.

    alone: the tokens of the context by itself; whole: those of the text. Where the tokenizer makes other tokens of the
    context once the target follows, the target begins with the first token that has any of its letters, though it may
    have the context's last ones, too. Where a tokenizer does not say which letters its tokens have, it begins behind as
    many tokens as the context has by itself (lm-evaluation-harness's convention).
    """
    if list(whole[: len(alone)]) == list(alone) or not getattr(tokenizer, "is_fast", False):
        return len(alone)
    found = tokenizer(str(text), add_special_tokens=False, return_offsets_mapping=True)
    before = len(whole) - len(found["input_ids"])  # the token that sequences begin with
    if before not in (0, 1) or list(whole[before:]) != found["input_ids"]:
        return len(alone)
    ends = (place for place, (_, end) in enumerate(found["offset_mapping"]) if end > len(context))
    return max(1, before + next(ends, len(found["input_ids"])))  # what is predicted has something before it

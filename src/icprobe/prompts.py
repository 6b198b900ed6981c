"""Texts of examples and tasks, from sandboxed Jinja2 templates. Data are rendered, never taken as templates."""

from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from icprobe.errors import ConfigError


def flat(text: Any) -> str:
    """Every run of white space becomes one space, ends stripped; null counts as empty."""
    return "" if text is None or text != text else " ".join(str(text).split())


class Prompts:
    """query, target, document and contexts of one experiment.

    templates: the configuration's `templates` as a mapping. Raises ConfigError for a template that does not parse or
    names an unknown variable.
    """

    def __init__(self, templates: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        environment.filters["flat"] = flat
        self._templates = {}
        for name in ("query", "target", "one_shot_prefix"):
            try:
                self._templates[name] = environment.from_string(templates[name])
            except TemplateError as error:
                raise ConfigError(f"config: templates.{name}: {error}") from None
        self.separator = templates["separator"]

    def _render(self, template: str, **values: Any) -> str:
        try:
            return self._templates[template].render(**values)
        except TemplateError as error:
            raise ConfigError(f"config: templates.{template}: {error}") from None

    def query(self, row: dict[str, Any]) -> str:
        """What the model reads before the response; sees instruction and input alone."""
        return self._render("query", instruction=row["instruction"], input=row.get("input"))

    def target(self, row: dict[str, Any]) -> str:
        """The response as it follows the query."""
        return self._render("target", output=row["output"])

    def document(self, row: dict[str, Any]) -> str:
        """query + target."""
        return self.query(row) + self.target(row)

    def one_shot_prefix(self, example: dict[str, Any]) -> str:
        """What precedes separator + query(task) when the example stands in the context."""
        return self._render("one_shot_prefix", document=self.document(example))

    def one_shot(self, example: dict[str, Any], task: dict[str, Any]) -> str:
        """Context of a task given one example."""
        return self.one_shot_prefix(example) + self.separator + self.query(task)


@dataclass(frozen=True)
class Encoded:
    """Token ids of context + target; the first `n_context` are the context, the others the target."""

    ids: tuple[int, ...]
    n_context: int

    @property
    def n_target(self) -> int:
        return len(self.ids) - self.n_context


def token_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a text, with no special tokens added."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(tokenizer: Any, context: str, target: str) -> Encoded:
    """ids are those of the joint text; the context's length is the token count of the context alone.

    This is lm-evaluation-harness's convention. A tokenizer that merges across the border moves a token to one side.
    """
    return Encoded(token_ids(tokenizer, context + target), len(token_ids(tokenizer, context)))

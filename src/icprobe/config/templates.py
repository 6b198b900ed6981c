"""The section of the configuration that says how rows become texts."""

from typing import Literal

from pydantic import Field, model_validator

from icprobe.config.types import FilePath, Section
from icprobe.templating import names_in

# Of each template the texts of which it has to have one.
HOLDS = {"query": ("instruction", "input"), "target": ("output",), "one_shot_prefix": ("document",)}


class Templates(Section):
    """Jinja2 templates (sandboxed) for all texts; the filter `flat` turns every run of white space into one space."""

    query: str = Field(
        "Instruction: {{ instruction | flat }}{% if input | flat %} Input: {{ input | flat }}{% endif %} Response:",
        description="What the model reads before the response; has instruction and input.",
    )
    target: str = Field(" {{ output | flat }}", description="The response that follows the query; has output.")
    one_shot_prefix: str = Field(
        "These examples may be helpful to answer the question\n\n\n{{ document }}",
        description="What precedes a task's query when one example is in the context; has document.",
    )
    separator: str = Field("\n\n", description="Between the one-shot prefix and the task's query; begins the suffix.")
    format: Literal["jinja", "chat"] = Field(
        "jinja",
        description="jinja: texts by the templates above, from instruction, input and output. chat: by the chat "
        "template of the model, from the whole conversation; those above then only write an example as text in a "
        "prompt.",
    )
    chat_template: FilePath | None = Field(
        None, description="chat: a Jinja file to use instead of the model's own chat template."
    )
    bos: Literal["auto", "none"] = Field(
        "auto",
        description="The token with which sequences begin (BOS): auto puts one before each, where the tokenizer does "
        "so by itself, as models such as Gemma and Llama need it; none does not, as in the paper. A chat template "
        "writes its own.",
    )

    @model_validator(mode="after")
    def _texts_are_in_them(self) -> "Templates":
        for name, texts in HOLDS.items():
            if name not in self.model_fields_set:
                continue
            try:
                used = names_in(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if not used & {*texts}:
                wanted = " or ".join(f"{{{{ {text} }}}}" for text in texts)
                raise ValueError(f"{name}: without {wanted} in it all rows would read alike")
        return self

    @model_validator(mode="after")
    def _a_chat_template_is_used(self) -> "Templates":
        if self.chat_template and self.format != "chat":
            raise ValueError("chat_template: it is used with format: chat only; set that, or leave it out")
        return self

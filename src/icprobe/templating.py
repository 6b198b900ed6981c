"""What Jinja2 templates use, found without rendering them."""


def names_in(template: str) -> set[str]:
    """The names that a template reads. Raises ValueError where it does not parse."""
    from jinja2 import Environment, TemplateSyntaxError, nodes  # few who import this module have templates of their own

    try:
        # Not `jinja2.meta`, which wants to know every filter.
        return {node.name for node in Environment().parse(template).find_all(nodes.Name) if node.ctx == "load"}
    except TemplateSyntaxError as error:
        raise ValueError(str(error)) from None

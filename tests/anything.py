"""Anything at all, for hypothesis: texts and values of every kind; and what a function makes of it."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from icprobe.errors import IcprobeError

bounded = settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Every plane, both directions of writing, controls, line separators; no half surrogate pairs, which UTF-8 cannot hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
odd_texts = (
    texts | st.text(max_size=5) | st.sampled_from(["\ud800", "a\nb", "\x1b[2J", "../../x", "\u202egnp", "\0", ""])
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | odd_texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3)
)


def outcome(function, *arguments):
    """What a function returns, or None where it refuses in one sentence. Anything else fails the test by itself."""
    try:
        return function(*arguments)
    except IcprobeError as error:
        message = str(error)
        assert message.strip()
        assert message.isprintable(), f"not one plain line: {message!r}"
        assert len(message) < 1500, f"{len(message)} characters"
        return None

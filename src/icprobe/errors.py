"""One exception class per kind of mistake; each message names what, where, the value seen and what to do.

Jobs and the Snakefile show these without a traceback. Any other exception is a bug, and is shown as one.
"""


class IcprobeError(Exception):
    """A mistake that the user can mend; its message is one clear sentence or two."""


class ConfigError(IcprobeError):
    """The configuration has an unknown key, a wrong type or values that contradict each other."""


class DataError(IcprobeError):
    """A data file is missing, cannot be read, or holds a row that cannot be used."""


class ModelError(IcprobeError):
    """A model cannot be found, is damaged, or is no causal language model."""


class ScoreError(IcprobeError):
    """An attribution or a score is NaN, infinite, or does not belong to the examples at hand."""


class ArtifactError(IcprobeError):
    """A computed file is truncated, changed or missing."""


class JudgeError(IcprobeError):
    """A judge cannot be reached or refuses the request."""

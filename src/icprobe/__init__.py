"""icprobe: what is a training example worth? Importing this package imports nothing heavy."""

__version__ = "0.1.0"

"""Cosines: a module apart, for the workflow, which imports no torch, and for methods, which depend on no registry."""

# Methods whose matrix are products over the norms of both sides, and the contraction that these come from.
COSINES = {"cosine": "influence", "less": "less"}

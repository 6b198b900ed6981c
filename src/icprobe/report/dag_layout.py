"""Where the nodes of a directed graph stand in a picture of it: layers from top to bottom, columns within them."""

from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
from scipy.optimize import linprog


def layers(graph: nx.DiGraph) -> tuple[dict[Any, tuple[float, int]], list[list[Any]]]:
    """(column, layer) of every node, and each edge as the nodes that it passes.

    An edge over several layers passes a place held free in each, so that it crosses no box. Within a layer nodes
    stand in the order of the mean column of their neighbours, above and below in turn.
    """
    level = _depths(graph)
    layers: list[list[Any]] = [[] for _ in range(max(level.values()) + 1)]
    for node in sorted(graph):
        layers[level[node]].append(node)
    paths = []
    neighbours = nx.Graph()
    neighbours.add_nodes_from(graph)
    for before, after in sorted(graph.edges):
        between = [(before, after, number) for number in range(level[before] + 1, level[after])]
        for waypoint in between:
            layers[waypoint[2]].append(waypoint)
            level[waypoint] = waypoint[2]
        paths.append([before, *between, after])
        nx.add_path(neighbours, paths[-1])
    column = {node: float(index) for layer in layers for index, node in enumerate(layer)}
    for sweep in range(12):
        step = -1 if sweep % 2 else 1
        for layer in layers[::-step]:

            def mean(node: Any, step: int = step) -> float:
                near = [column[other] for other in neighbours[node] if level[other] == level[node] + step]
                return sum(near) / len(near) if near else column[node]

            layer.sort(key=lambda node: (mean(node), str(node)))
            _spread(layer, mean, column)
    first = min(column.values())
    return {node: (column[node] - first, level[node]) for node in column}, paths


def _depths(graph: nx.DiGraph) -> dict[Any, int]:
    """The layer of every node such that all edges lead down and are as short as possible together.

    A linear programme whose vertices are whole numbers, as in dot (Gansner et al. 1993, section 2).
    """
    nodes = sorted(graph)
    index = {node: i for i, node in enumerate(nodes)}
    edges = sorted(graph.edges)
    lengths = np.zeros((len(edges), len(nodes)))
    for row, (before, after) in enumerate(edges):
        lengths[row, index[before]], lengths[row, index[after]] = -1, 1
    # The small second term settles ties towards the top.
    cost = lengths.sum(axis=0) + 1e-3
    least = {"A_ub": -lengths, "b_ub": -np.ones(len(edges))} if edges else {}
    found = linprog(cost, **least, bounds=(0, len(nodes)), method="highs-ds")
    return {node: round(found.x[index[node]]) for node in nodes}


def _spread(layer: list[Any], wanted: Any, column: dict[Any, float]) -> None:
    """Sets the columns of an ordered layer: as near to the wanted ones as a distance of 1 (0.4 beside a passing edge)
    allows."""
    widths = [0.4 if isinstance(node, tuple) else 1.0 for node in layer]
    starts = [0.0]
    for left, right in pairwise(widths):
        starts.append(starts[-1] + (left + right) / 2)
    # Without their distances the columns need only ascend: pool neighbours that do not (isotonic regression).
    pools: list[list[float]] = []
    for node, start in zip(layer, starts, strict=True):
        pools.append([wanted(node) - start, 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    free = [value for value, count in pools for _ in range(int(count))]
    for node, value, start in zip(layer, free, starts, strict=True):
        column[node] = round(value + start, 6)

#!/bin/sh -e
# Installs the package with the versions of constraints.txt into the environment whose `python` comes first: for `make
# install`, for Snakemake's conda environment (which copies icprobe.yaml away, so that no path in it would lead here) and
# for the Containerfile. It runs in the project's directory.
#
# PyTorch comes first and pinned: pip then takes a CPU build where one is offered (an index or a --find-links folder of
# yours), and nothing later replaces it.
if grep -qs '^name = "icprobe"' pyproject.toml; then
    python -m pip install --quiet --constraint constraints.txt torch==2.13.0
    python -m pip install --quiet --constraint constraints.txt --editable '.[slurm]'
else
    # As a module of another workflow, or deployed: the release, from the index.
    python -m pip install --quiet torch==2.13.0
    python -m pip install --quiet 'icprobe[slurm]==0.1.0'
fi

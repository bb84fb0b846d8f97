"""The configuration of agents: which model, tools, budget, limits and policies a run has. A change is a new version.

terms.py      what one version says, and what it means for a run (pure)
inputs.py     what an administrator gives, and the terms that it makes (pure)
versions.py   the versions as rows in Postgres: the current one, one by its number, a new one
"""

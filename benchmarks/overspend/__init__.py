"""The overspend test: does a gateway keep its budgets when things go wrong? The provider's own invoice is the judge.

Read `adapter.py` for what a gateway must be able to do, `scenarios.py` for what is done to it, and `judge.py` for how
it is judged. README.md explains the table, and how to write another adapter.
"""

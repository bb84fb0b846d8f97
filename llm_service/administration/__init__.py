"""What administrators change: people, keys, budgets, limits. One file for each noun.

What must hold: each function is one transaction that also raises the epoch; what fails writes
nothing; the REST API and the command line check input with the same models.
"""

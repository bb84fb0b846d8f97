"""What administrators change: organisations, keys, budgets, limits. One file for each noun.

What must hold:
  Each change is one transaction, which also raises the epoch; a change that fails writes nothing.
  The REST API and the command line check input with the same models.
"""

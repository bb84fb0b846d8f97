"""The treasury: budgets, windows, holds and the ledger, in Postgres.

What must hold:
  Every change to money is one transaction, and repeating it changes nothing: holds and settlements are identified by
      call id and attempt.
  Every balance can be computed again from the rows. The audit does so.
"""

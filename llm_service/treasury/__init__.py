"""The treasury: budgets, windows, holds and the ledger, in Postgres.

What must hold: every change to money is one transaction, idempotent by call id, and `audit`
can recompute every balance from the rows.
"""

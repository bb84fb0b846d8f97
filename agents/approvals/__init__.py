"""Approvals: what a run asks a person before it acts, or when nobody knows whether it has acted."""

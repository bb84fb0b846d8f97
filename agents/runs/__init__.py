"""Runs record what agents do, as rows. A step happens once, any worker can continue a run, and its end is recorded.

record.py        the types: Run, Step, Claim, and the ways in which a run ends or waits
store.py         the protocol of a store of runs, and its errors
in_postgres.py   the store: statements in sql/
in_memory.py     the same in memory, for tests
refusals.py      why a store refuses to add, find, retry or fork a run (pure)
journal.py       one run's steps: replayed, or done and recorded
decisions.py     what persons have decided about the steps of a run (pure)
children.py      the runs that a run starts: each is a step, and is paid for by a part of the run's money
durability.py    the journal as a capability of PydanticAI: each model request and tool call is a step
failures.py      how a run stops that cannot simply go on, and what is recorded of an error (pure)
outcomes.py      what becomes of a run that stops (pure)
views.py         runs and steps as the API and the command line show them (pure)
code_version.py  the version of the code, which each run records
events.py        what a watcher of a run is shown, event by event (pure)
watching.py      waits for changes, for all watchers of a process together
executor.py      from a request to a run, and from a claimed run to its outcome
worker.py        claims runs, keeps their leases, and lets go of them
"""

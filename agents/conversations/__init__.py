"""Conversations: what the runs of a session said, which its next run reads.

record.py        the types: Conversation, Message, HistoryLimits
history.py       which turns a run reads (pure)
turn.py          what a run has said, whole also where the run has stopped (knows PydanticAI's messages)
views.py         conversations as the API and the command line show them (pure)
store.py         the protocol of a store of conversations
in_postgres.py   the store: statements in sql/
in_memory.py     the same in memory, for tests
"""

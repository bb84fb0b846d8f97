"""The governed call: everything between an agent's request for a model and the bill for it.

What must hold here: nothing in this package knows of HTTP servers or of agents, and nothing
outside it speaks to LiteLLM Proxy. Start reading in `service.py`.
"""

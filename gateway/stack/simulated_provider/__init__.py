"""The simulated provider: an independent program that answers like OpenAI, Anthropic, Google and others, and keeps a
meter.

What must hold:
- it imports nothing of Treasurer and has its own price list (`prices.py`), so that its invoice is an independent
  truth (tests assert it);
- an answer is a function of the request, the model and `--seed` alone;
- every request that did work is exactly one line of the invoice, priced in integers (`meter.py`, `prices.py`);
- a service for agents to act on (`desk.py`) is beside the models, and bills nothing;
- it lies only when a script tells it to (`script.py`), and the invoice then says what was truly billed.

Read `app.py` top-down for how a request is served; `script.py` lists every knob.

    python -m gateway.stack.simulated_provider --port 4200
"""

"""One module for each gateway: how it is started, how it gets a budget, and what its own books contain."""

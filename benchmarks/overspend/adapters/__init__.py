"""One module for each gateway: how it is started, how it is given a budget, and what its own books say."""

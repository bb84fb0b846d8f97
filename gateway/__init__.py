"""How the world reaches Treasurer: HTTP, command line, and the stack that runs beside them."""

"""How a route reaches its backend, one file per kind."""

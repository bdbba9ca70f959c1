"""How fast wstunnel is beside others that do the same work: `python -m bench.load --help`."""

"""What hostile HTTP/2 clients cost everybody else: `python -m bench.abuse`."""

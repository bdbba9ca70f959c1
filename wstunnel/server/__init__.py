"""Processes: the worker that carries the traffic, its routes and its access log."""

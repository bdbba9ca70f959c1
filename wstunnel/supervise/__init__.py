"""Pools of backend processes; knows no HTTP and no WebSocket."""

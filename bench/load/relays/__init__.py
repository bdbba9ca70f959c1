"""Relays on libraries that people build tunnels with, written as their documentation would have it."""

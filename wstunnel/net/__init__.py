"""asyncio glue: listening, accepting, HTTP/1 connections, timers."""

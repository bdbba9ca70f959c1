"""Pure protocol logic: no asyncio, socket, os or clock."""

"""Warm handlers: programs that are started once and answer one task after the other over JSON-RPC."""

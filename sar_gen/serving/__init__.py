"""An engine elsewhere: what goes over the wire, the server, Ray Serve around it, and the client."""

MAX_WAITING = 16
"""Requests that may wait at an engine beside the one that is made."""

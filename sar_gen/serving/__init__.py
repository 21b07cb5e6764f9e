"""An engine elsewhere: what goes over the wire, the server, Ray Serve around it, and the client."""

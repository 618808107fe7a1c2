"""What runs inside a unit's pod, and the gateway in front of it."""

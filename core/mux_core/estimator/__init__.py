"""What the members of a unit get: served rate, latencies, KV use, and why not more."""

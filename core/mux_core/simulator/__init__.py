"""Units on a virtual clock: the shipped policies on an engine whose step times come from a profile."""

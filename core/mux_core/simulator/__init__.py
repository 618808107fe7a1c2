"""Units on a virtual clock: the shipped policies, on an engine whose steps a profile times."""

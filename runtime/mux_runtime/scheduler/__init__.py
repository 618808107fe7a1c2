"""The unit scheduler: requests of all members, granted step by step to their engine hosts.

One asyncio thread that never waits synchronously. `unit` is the whole; `members`, `hosts` and
`requests` are what it keeps; `links` is how it speaks to an engine host, whatever carries it.
"""

"""The KV pool of one GPU: who owns which head units, and the memory they lie in.

`allocator` says what an allocator is and opens one; the unit scheduler alone leases from it.
`owner` is the process that holds the memory; `client` maps it into hosts and the scheduler.
"""

"""The cluster door on one machine: manifests from files, units as process trees.

It knows no Kubernetes. `serve` runs it with the reconciler that the operator runs.
"""

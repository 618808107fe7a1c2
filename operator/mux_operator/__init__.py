"""The control plane: turns a cluster into a snapshot and decisions into objects."""

"""SM shares of a GPU: asked for, given by CUDA MPS, and measured inside every engine host.

Standard library only. Never run on a GPU so far; `docs/gpu.md` says what was shown without one.
"""

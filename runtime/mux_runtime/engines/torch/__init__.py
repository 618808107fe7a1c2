"""The compact torch engine: dense decoder-only models over the shared head-wise KV pool."""

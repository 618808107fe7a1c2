"""The unit's OpenAI API: text in, text out, over any `mux_runtime.generation.Generator`."""

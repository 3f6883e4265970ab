"""A checkpoint in, a vLLM engine that serves it out; `plugin` is what vLLM loads in its own processes."""

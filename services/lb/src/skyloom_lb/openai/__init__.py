"""The OpenAI-compatible face: models, routing by model, usage, and streams that survive their endpoint."""

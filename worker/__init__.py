"""The process that computes: it claims jobs, trains them in a child, and stores what happened. PyTorch, never FastAPI."""

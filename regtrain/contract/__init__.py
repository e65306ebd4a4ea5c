"""The words that service and worker share: spec, runs, events, states, errors. Standard library, pydantic and numpy only."""

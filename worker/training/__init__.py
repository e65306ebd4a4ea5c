"""The mathematics: jobs in, events out. Knows the contract and torch, not the store."""

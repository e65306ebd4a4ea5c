"""Asks and shows: the HTTP API over the store. No torch, no worker."""

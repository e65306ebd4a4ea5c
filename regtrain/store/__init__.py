"""What is remembered: tables, the verbs on them, curves and files. Every verb is one transaction. No torch, no HTTP."""

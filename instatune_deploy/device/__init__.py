"""The machine wing: runtimes, lowering, timing. It knows no super-network."""

"""Frozen values and their arithmetic; nothing here imports torch or a runtime."""

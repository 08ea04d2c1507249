"""From a torch module to files that a runtime loads."""

"""A run, or two side by side, as one HTML page that needs nothing else; reads the run's directory alone."""

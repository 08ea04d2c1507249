"""One file a model family: its axis map."""

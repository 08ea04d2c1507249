"""What a run would do before it does it: which stages, what of them is reused and why, how long they should take."""

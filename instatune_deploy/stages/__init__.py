"""What a run does, a file a stage; stages never import each other."""

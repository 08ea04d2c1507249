"""The network wing: super-networks and their training. It knows no device."""

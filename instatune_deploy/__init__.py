"""A pre-trained transformer goes in; the most accurate network that meets a device's latency budget comes out."""

__version__ = "0.1.0"

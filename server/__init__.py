"""The Flower ServerApp of fedsim: it moves frames. See ``server.app``."""

"""The Flower ClientApp of fedsim: it moves frames. See ``client.app``."""

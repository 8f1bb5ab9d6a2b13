"""Models: how they are loaded, which parameters train, and losses that fit in memory."""

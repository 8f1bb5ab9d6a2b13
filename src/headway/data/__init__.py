"""From files to rows: where data comes from, what the model sees of it, and in which order."""

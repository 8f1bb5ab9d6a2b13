"""One module per kind of training; each enters by the entry point group ``headway.recipes``."""

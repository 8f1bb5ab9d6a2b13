"""Models: how they are loaded, which parameters train, and losses that fit in memory."""

import logging

# Set before peft imports bitsandbytes, which warns of an optional CPU kernel in every process.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

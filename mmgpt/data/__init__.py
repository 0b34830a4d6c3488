"""Pictures and words from outside -> records, upright RGB pictures, training rows."""

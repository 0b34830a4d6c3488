"""Pictures and words from outside -> records, upright RGB pictures, training rows; sources of all kinds -> packed streams."""

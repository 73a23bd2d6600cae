"""Where tasks wait, are claimed and are settled. Services know `interface`; only assembly picks an engine."""

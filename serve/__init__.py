"""HTTP serving of a saved program; imports tinygrad_ish, never the other way round."""

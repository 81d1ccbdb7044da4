"""Models that letgo can bring up by itself, without a model hub."""

from letgo.models.smollm2 import load_smollm2, smollm2_directory

__all__ = ["load_smollm2", "smollm2_directory"]

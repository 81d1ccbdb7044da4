"""TOFU: fictitious authors."""

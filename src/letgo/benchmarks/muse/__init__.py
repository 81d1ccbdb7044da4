"""MUSE: news and books."""

"""Scoring by a server that is asked over HTTP: what it can be asked, and how."""

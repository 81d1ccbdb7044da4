"""Auditing a model that anybody made: a suite of attacks within a budget, one record, and a gate on it."""

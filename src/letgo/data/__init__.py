"""Forget and retain data: read and checked (`rows`), tokenised (`encode`), paired and collated (`pairs`)."""

from letgo.data.encode import Encoded, Template, encode_rows, resolve_template
from letgo.data.pairs import ForgetRetainDataset, collate_pairs, pad_rows
from letgo.data.rows import Row, check_disjoint, read_rows, rows_from_records

__all__ = [
    "Encoded",
    "ForgetRetainDataset",
    "Row",
    "Template",
    "check_disjoint",
    "collate_pairs",
    "encode_rows",
    "pad_rows",
    "read_rows",
    "resolve_template",
    "rows_from_records",
]

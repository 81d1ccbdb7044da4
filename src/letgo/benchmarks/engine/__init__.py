"""What the benchmarks share: items, requests, questions, tables of data, and scoring a model on them."""

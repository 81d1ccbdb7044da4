"""The papers' claims held against runs of our own: sweeps become small result files, and those a page.

    python -m letgo.evidence settle TUNED --attacks attacks.yaml --seeds 0,1,2 --output grid.yaml
    letgo sweep grid.yaml
    python -m letgo.evidence collect SWEEP… --attacks attacks.yaml --output results/NAME.json
    python -m letgo.evidence page results --output docs/evidence.md

`settle.py` turns a tuned sweep into a grid that names what was chosen; `collect.py` reads a sweep's runs into a
`Record` (`records.py`); `claims.py` holds the claims and how each is judged; `page.py` writes the page.
"""

import sys
from pathlib import Path

# `reference` (the plain versions) and `problems` (models and closures) are plain modules beside the tests.
sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

"""`python -m tests.records COUNT [SEED]`: damages so many folders, counts what became of them; 1 if one went wrong."""

from __future__ import annotations

import shutil
import sys
from collections import Counter

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.records.damage import damages
from tests.records.looking import Wrong, look, made_folder


def torture(count: int, seed: int = 0) -> Counter[str]:
    counts: Counter[str] = Counter(tried=0, shown=0, named=0, wrong=0)
    template = made_folder()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=seed == 0,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(damages, min_size=1, max_size=2))
    def tried(done):
        counts["tried"] += 1
        try:
            counts.update(look(done, template))
        except Wrong as wrong:
            counts["wrong"] += 1
            what = [f"{d.file}: {d.kind} at {d.where:.6f}, {d.token[:30]}" for d in done]
            print(*what, wrong, sep="\n  ", file=sys.stderr)

    tried()
    shutil.rmtree(template)
    return counts


if __name__ == "__main__":
    made = torture(int(sys.argv[1]) if len(sys.argv) > 1 else 500, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(", ".join(f"{name} {count}" for name, count in made.items()))
    sys.exit(made["wrong"] > 0)

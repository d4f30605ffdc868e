"""Counts words in files named on the command line."""

import sys
from collections import Counter
from pathlib import Path


def words(path: Path) -> Counter:
    counts = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        counts.update(word.strip(".,;:").lower() for word in line.split())
    return counts


def main() -> int:
    total = Counter()
    for name in sys.argv[1:]:
        total += words(Path(name))
    for word, count in total.most_common(10):
        print(f"{count:6} {word}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

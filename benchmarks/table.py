"""``python -m benchmarks.table``: write docs/benchmarks.md from the results on disk."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import Result, read_results

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Made by `make bench-table` from `benchmarks/results/*.json`. Ratios are of things run side by
side, in turns, in one run: machines are shared and noisy, so absolute times mean little.
`make bench` runs all, `make bench-NAME` one module of `benchmarks/`.

| result | figure | goal | reached | compared with | spread |
|---|---|---|---|---|---|
"""


def page(results: list[Result]) -> str:
    """Return the page."""
    rows = [
        f"| `{r.name}` | {r.figure:.4g} {r.unit} | {'≥' if r.better == 'higher' else '≤'} "
        f"{r.goal:g} | {'yes' if r.is_reached else '**no**'} | {r.compared_with} | {r.spread} |"
        for r in results
    ]
    notes = [f"- `{r.name}`: {r.note}" for r in results if r.note]
    made = [
        f"- `{r.name}`: {r.date}, {r.machine}; "
        + ", ".join(f"{name} {number}" for name, number in r.versions.items())
        for r in results
    ]
    parts = [_HEAD + "\n".join(rows), "## Notes\n\n" + "\n".join(notes)]
    parts.append("## Measured on\n\n" + "\n".join(made))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(read_results()))

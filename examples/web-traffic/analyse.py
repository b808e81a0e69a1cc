#!/usr/bin/env python3
"""Find the hours in which a web site behaved unlike itself.

Reads traffic.csv in the working directory and writes report.md and plot.svg
beside it. Standard library only.
"""

import csv
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

# The measures, and a spread below which a difference is noise.
FIELDS = {"requests": 20, "error_rate": 0.005, "p95_ms": 5}


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def load(path):
    rows = []
    with open(path, newline="") as f:
        for line in csv.DictReader(f):
            requests, errors = int(line["requests"]), int(line["errors"])
            rows.append({
                "hour": line["hour"],
                "requests": requests,
                "error_rate": errors / max(requests, 1),
                "p95_ms": int(line["p95_ms"]),
            })
    return rows


def slot(row):
    """Hours are compared with the same hour of the same kind of day."""
    date = time.strptime(row["hour"], "%Y-%m-%dT%H:%M")
    return date.tm_wday >= 5, date.tm_hour


def unusual(rows):
    """Give the hours whose modified z-score (median, MAD) is above 6."""
    found = []
    for field, noise in FIELDS.items():
        groups = defaultdict(list)
        for row in rows:
            groups[slot(row)].append(row[field])
        for row in rows:
            values = groups[slot(row)]
            middle = statistics.median(values)
            spread = statistics.median(abs(v - middle) for v in values)
            spread = max(spread, 0.05 * abs(middle), noise)
            score = 0.6745 * (row[field] - middle) / spread
            if abs(score) > 6:
                found.append((row["hour"], field, row[field], middle, score))
    return sorted(found)


def plot(rows, found, path):
    width, height, left, top = 960, 300, 60, 30
    most = max(r["requests"] for r in rows)
    x = lambda i: left + i * (width - left - 20) / (len(rows) - 1)
    y = lambda v: top + (height - top - 40) * (1 - v / most)
    index = {r["hour"]: i for i, r in enumerate(rows)}
    points = " ".join(f"{x(i):.1f},{y(r['requests']):.1f}" for i, r in enumerate(rows))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">Requests per hour; red marks what is unusual</text>',
    ]
    for share in (0, 0.5, 1):
        v = most * share
        out.append(f'<line x1="{left}" x2="{width-20}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left-8}" y="{y(v)+4:.1f}" text-anchor="end">{v:.0f}</text>')
    for i in range(0, len(rows), 24 * 7):
        out.append(f'<text x="{x(i):.1f}" y="{height-16}">{rows[i]["hour"][:10]}</text>')
    out.append(f'<polyline points="{points}" fill="none" stroke="#2a6f97" stroke-width="1"/>')
    for hour, *_ in found:
        i = index[hour]
        out.append(f'<circle cx="{x(i):.1f}" cy="{y(rows[i]["requests"]):.1f}" r="4" fill="#d62828"/>')
    out.append("</svg>")
    Path(path).write_text("\n".join(out) + "\n")


def report(rows, found, path):
    lines = [
        "# Web traffic, four weeks",
        "",
        f"- hours: {len(rows)}, from {rows[0]['hour']} to {rows[-1]['hour']}",
        f"- requests: {sum(r['requests'] for r in rows):,}",
        f"- median p95: {statistics.median(r['p95_ms'] for r in rows):.0f} ms",
        f"- unusual: {len({f[0] for f in found})} hours",
        "",
        "| hour | measure | value | usual |",
        "|---|---|--:|--:|",
    ]
    for hour, field, value, middle, _ in found:
        show = (lambda v: f"{v:.1%}") if field == "error_rate" else (lambda v: f"{v:,.0f}")
        lines.append(f"| {hour} | {field} | {show(value)} | {show(middle)} |")
    lines += ["", "![requests per hour](plot.svg)", ""]
    Path(path).write_text("\n".join(lines))


def main():
    say("reading traffic.csv")
    rows = load("traffic.csv")
    say(f"{len(rows)} hours; looking for the unusual ones")
    found = unusual(rows)
    say(f"{len(found)} findings; drawing plot.svg")
    plot(rows, found, "plot.svg")
    report(rows, found, "report.md")
    say("wrote report.md")
    print()
    print(Path("report.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

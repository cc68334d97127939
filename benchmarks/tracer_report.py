"""The tables of the benchmark, in Markdown, from its JSON."""

from collections.abc import Callable
from typing import Any

from tracer_statistics import FEWEST, Estimate, estimate, estimate_ratio
from tracer_workloads import KINDS

PAIRS_FOR_A_CLAIM = 20
GOAL = 0.01  # CPU a request, more than without
FAMILIES = {"mappings": "trace-mmap", "faults": "trace-faults"}
_TORCH = tuple((workload, figure) for workload in ("torch", "torch-trim") for figure in ("cpu", "throughput"))
_SERVICES = (("serve", "cpu"), *_TORCH)
COLUMNS = {
    "mappings": (("churn", "throughput"), ("ucx", "throughput"), *_SERVICES),
    "faults": (("faults", "throughput"), ("ucx", "throughput"), *_SERVICES),
}
FIGURE = dict.fromkeys(("serve", "torch", "torch-trim"), "cpu")
GOALS_ABOVE = {("mappings", "memforensics", "churn"): 9.0, ("mappings", "memforensics", "ucx"): 3.0}

Rows = list[dict[str, Any]]
Json = dict[str, Any]


def report(results: Json) -> str:
    parts: list[str] = [_head(results)]
    for family, command in FAMILIES.items():
        cells = [cell for cell in results.get("cells", {}).values() if cell["family"] == family]
        if cells:
            parts += [f"### {command}", _cost(family, cells), _claims(cells), _below(family, cells)]
            parts += ["What stack each gave, read from its output:", _stacks(family, cells), _own(cells)]
    if results.get("others"):
        parts += ["### What other processes on the host pay", _others(list(results["others"].values()))]
    if results.get("first"):
        parts += ["### The first result", _first(list(results["first"].values()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Json) -> str:
    host = f"Linux {results['kernel']}, {results['machine']}, {results['cpus']} CPUs ({results['cpu']})"
    lines = [f"Measured {results['date']} on {host}; load when the last part began: {results.get('load', 0.0):.1f}."]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.get("versions", {}).items()))
    if versions:
        lines.append(f"Versions: {versions}.")
    lines.append(
        "A pair is a measurement with the tool over the mean of the two without around it; n pairs. In each place: "
        "their median and, in brackets, the 95% interval (Wilcoxon's signed ranks); with fewer than "
        f"{FEWEST} their range, in parentheses."
    )
    return "\n".join(lines)


# --- cells -----------------------------------------------------------------------------------------------------------


def throughput(pair: Json) -> float:
    return float(pair["during"]["rate"] / ((pair["before"]["rate"] + pair["after"]["rate"]) / 2))


def cpu(pair: Json) -> float | None:
    values = [pair[when]["cpu_s"] for when in ("before", "during", "after")]
    return None if None in values else float(values[1] / ((values[0] + values[2]) / 2))


def _values(cell: Json, figure: str) -> list[float]:
    return [value for value in map(OF[figure], cell["pairs"]) if value is not None]


OF: dict[str, Callable[[Json], float | None]] = {"throughput": throughput, "cpu": cpu}


def _text(found: Estimate, form: Callable[[float], str]) -> str:
    if found.count == 1:
        return f"{form(found.median)}, n=1"
    if found.low is None or found.high is None:
        return f"{form(found.median)} ({form(found.smallest)} to {form(found.largest)}), n={found.count}"
    return f"{form(found.median)} [{form(found.low)} to {form(found.high)}], n={found.count}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def _tools(cells: Rows) -> list[str]:
    return list(dict.fromkeys(cell["tool"] for cell in cells))


def _cell(cells: Rows, tool: str, workload: str) -> Json | None:
    return next((cell for cell in cells if cell["tool"] == tool and cell["workload"] == workload), None)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


# --- tables ----------------------------------------------------------------------------------------------------------


def _cost(family: str, cells: Rows) -> str:
    columns = [(w, f) for w, f in COLUMNS[family] if any(c["workload"] == w for c in cells)]
    rows = []
    for tool in _tools(cells):
        row = [tool]
        for workload, figure in columns:
            cell = _cell(cells, tool, workload)
            values = _values(cell, figure) if cell else []
            if values:
                text = _text(estimate_ratio(values), _ratio)
                row.append(f"{text}; {cell['failed']}" if cell and cell["failed"] else text)
            else:
                row.append((cell and cell["failed"]) or "-")
        rows.append(row)
    names = {"throughput": "throughput", "cpu": "CPU a request"}
    table = _table(["tool", *(f"{workload}: {names[figure]}" for workload, figure in columns)], rows)
    told = "\n".join(f"- {kind}: {KINDS[kind].text}" for kind in dict.fromkeys(workload for workload, _ in columns))
    return f"With over without; throughput below 1 and CPU above 1 are cost.\n\n{table}\n\n{told}"


def _claims(cells: Rows) -> str:
    lines = []
    for cell in cells:
        values = _values(cell, "cpu")
        if not values or cell["workload"] not in FIGURE or not cell["tool"].startswith(("memforensics", "floor")):
            continue
        found = estimate_ratio(values)
        if found.low is None or found.high is None or found.count < PAIRS_FOR_A_CLAIM:
            why = f"not shown ({found.count} pairs, {PAIRS_FOR_A_CLAIM} are wanted)"
        else:
            why = "shown" if found.high - 1 < GOAL else "not shown"
            if found.low - 1 > GOAL:
                why = "not shown: it costs more"
        percent = _text(_less_one(found), lambda value: f"{100 * value:+.2f}%")
        lines.append(f"- {cell['workload']}, {cell['tool']}: {percent} CPU a request. Under {GOAL:.0%}: {why}.")
    return "\n".join(lines)


def _less_one(found: Estimate) -> Estimate:
    ends = [None if end is None else end - 1 for end in (found.low, found.high)]
    return Estimate(found.median - 1, found.smallest - 1, found.largest - 1, ends[0], ends[1], found.count)


def _below(family: str, cells: Rows) -> str:
    """What a tool takes beyond the floor, turn by turn."""
    columns = [(w, f) for w, f in COLUMNS[family] if f == FIGURE.get(w, "throughput") and _cell(cells, "floor", w)]
    rows = []
    for tool in _tools(cells):
        row = [_beyond(family, cells, tool, *column) for column in columns] if tool != "floor" else []
        if any(text != "-" for text in row):
            rows.append([tool, *row])
    if not rows:
        return ""
    head = ["tool", *(f"{w}: {'% of CPU' if f == 'cpu' else 'points of throughput'}" for w, f in columns)]
    return "Above the floor, of neighbouring pairs; more is dearer:\n\n" + _table(head, rows)


def _beyond(family: str, cells: Rows, tool: str, workload: str, figure: str) -> str:
    floor, cell = _cell(cells, "floor", workload), _cell(cells, tool, workload)
    if floor is None or cell is None:
        return "-"
    of = OF[figure]
    floors = {(pair["run"], pair["turn"]): of(pair) for pair in floor["pairs"]}
    more = []
    for pair in cell["pairs"]:
        with_tool, with_floor = of(pair), floors.get((pair["run"], pair["turn"]))
        if with_tool is not None and with_floor is not None:
            more.append(100 * (with_tool / with_floor - 1 if figure == "cpu" else with_floor - with_tool))
    if not more:
        return "-"
    found = estimate(more)
    goal = 1.0 if "--overhead 1%" in tool else GOALS_ABOVE.get((family, tool, workload))
    text = _text(found, lambda value: f"{value:+.1f}")
    if goal is None:
        return text
    shown = found.high is not None and found.high <= goal
    return f"{text}; at most {goal:.0f}: {'shown' if shown else 'not shown'}"


def _stacks(family: str, cells: Rows) -> str:
    columns = list(dict.fromkeys(w for w, _ in COLUMNS[family] if any(c["workload"] == w for c in cells)))
    rows = []
    for tool in _tools(cells):
        if tool == "floor":
            continue
        found = [_cell(cells, tool, workload) for workload in columns]
        rows.append([tool, *((cell["words"] or cell["failed"] or "-") if cell else "-" for cell in found)])
    return _table(["tool", *columns], rows)


def _own(cells: Rows) -> str:
    rows = []
    for cell in cells:
        shares = [p["tool_cpu_s"] / p["during"]["seconds"] for p in cell["pairs"] if p["tool_cpu_s"] is not None]
        if not shares:
            continue
        whole = [used for _, used in cell.get("lives", [])]
        rows.append(
            [
                cell["workload"],
                cell["tool"],
                _text(estimate(shares), lambda value: f"{100 * value:.1f}%"),
                f"{estimate(whole).median:.2f} s" if whole else "-",
                f"{cell['peak_rss'] / 2**20:.0f} MiB" if cell["peak_rss"] else "-",
            ]
        )
    head = [
        "workload",
        "tool",
        "its own CPU while tracing, of a core",
        "its own CPU from start to end",
        "its RSS, the peak",
    ]
    return "What the tools themselves took:\n\n" + _table(head, rows) if rows else ""


def _others(rows_in: Rows) -> str:
    workloads = list(dict.fromkeys(row["workload"] for row in rows_in))
    rows = []
    for family, tool in dict.fromkeys((row["family"], row["tool"]) for row in rows_in):
        row = [FAMILIES[family], tool]
        for workload in workloads:
            found = next(
                (r for r in rows_in if (r["family"], r["tool"], r["workload"]) == (family, tool, workload)), None
            )
            more = [on - off for off, on in found["ns"]] if found else []
            row.append(
                _text(estimate(more), lambda value: f"{value:+.1f}") if more else (found and found["failed"]) or "-"
            )
        rows.append(row)
    without = []
    for workload in workloads:
        offs = [off for row in rows_in if row["workload"] == workload for off, _ in row["ns"]]
        if offs:
            without.append(f"{workload} {estimate(offs).median:.0f} ns")
    head = ["events of", "tool", *(f"{workload}, ns more" for workload in workloads)]
    note = "CPU time of one operation in a process that nobody traces, while another one is."
    return f"{note} Without: {', '.join(without)}.\n\n{_table(head, rows)}"


def _first(rows_in: Rows) -> str:
    rows = []
    for row in rows_in:
        seconds = [value for value in row["seconds"] if value is not None]
        missed = len(row["seconds"]) - len(seconds)
        text = _text(estimate(seconds), lambda value: f"{value:.2f} s") if seconds else "-"
        rows.append([row["tool"], text + (f"; {missed} times nothing" if missed else ""), row["what"]])
    note = (
        "From the start of the command to the first thing that it shows of a process with torch loaded, which maps and "
    )
    note += "keeps 1 MiB 20 times a second."
    return f"{note}\n\n{_table(['command', 'seconds', 'what is shown first'], rows)}"

"""The comparison as Markdown and JSON."""

import dataclasses
import json
import math

import text_datasets
from method_comparison import summary

SUBJECT = "uegr"


def write(results, datasets, settings, output, subject=SUBJECT):
    """Write `comparison.md` and `comparison.json`; return the Markdown.

    Args:
        results: dict of results by `Cell`.
        datasets: list of strings.
        settings: `cells.Settings`.
        output: `pathlib.Path` of a folder.
        subject: string. The method whose wins and losses are listed.
    """
    tables = {name: summary.scores_of(results, name) for name in datasets}
    sections = [heading(settings)]
    for name, table in tables.items():
        sections += [f"## {name}", *metric_note(name), score_table(table)]
        # Two seeds may agree by chance, and make a test that looks certain.
        seeds = max(map(len, table.get(subject, {"": ()}).values()))
        if seeds > 2 and len(table) > 1:
            sections += [
                f"### Where `{subject}` wins and loses",
                outcome_table(table, subject),
            ]
    text = "\n\n".join(sections) + "\n"
    (output / "comparison.md").write_text(text, encoding="utf-8")
    content = {"settings": dataclasses.asdict(settings), "scores": tables}
    (output / "comparison.json").write_text(
        json.dumps(_without_nan(content), indent=2, allow_nan=False)
    )
    return text


def _without_nan(content):
    """Return the content with `None` for NaN, which isn't part of JSON."""
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def heading(settings):
    """Return the lines that say how the figures came about."""
    falling = ", falling to 0" if settings.decay == "linear" else ""
    return (
        "# Comparison\n\n"
        f"MiniLM-L6, {settings.train_size} training examples "
        f"of {settings.sequence_length} tokens at most, {settings.epochs} "
        f"epochs, learning rate {settings.learning_rate:g}{falling}, factors "
        f"of products in {settings.matmul_precision}; "
        f"measured on {settings.test_size} {settings.split} examples"
        f"{attacked(settings)}. Mean over the seeds ± half the 95 % t "
        "interval; in bold the best of those within "
        f"{100 * summary.CLEAN_LOSS:.0f} points of the best on clean "
        "examples. `cost` is training time over that of plain `fit`."
    )


def attacked(settings):
    """Return on how many of the examples there are attacks, as clauses."""
    sizes = {}
    if settings.radii:
        sizes["attack on the embeddings"] = settings.white_box_size
    if settings.attacks:
        sizes["text attacks"] = settings.attack_size
    clauses = [
        f"under {kind} on {min(size, settings.test_size)}"
        for kind, size in sizes.items()
    ]
    return f", {' and '.join(clauses)}" if clauses else ""


def metric_note(dataset):
    """Return the line that names what scores are, unless it is accuracy.

    Args:
        dataset: string.

    Returns:
        List of the line, or an empty one.
    """
    metric = text_datasets.TASKS[dataset].metrics[0]
    if metric == "accuracy":
        return []
    return [f"Scores are {metric}, times 100, where no other metric is named."]


def score_table(table):
    """Return a row for each method, and a column for each score."""
    columns = columns_of(table)
    best = {name: summary.best_methods(table, name) for name in columns}
    rows = [
        [method, str(max(map(len, scores.values())))]
        + [
            _cell(scores.get(name), name, method in best[name])
            for name in columns
        ]
        for method, scores in table.items()
    ]
    return markdown([["method", "seeds", *columns], *rows])


def columns_of(table):
    """Return the names of all columns, in the order they appear."""
    return list(dict.fromkeys(name for row in table.values() for name in row))


def _cell(by_seed, column, is_best):
    if by_seed is None:
        return "not measured"
    interval = summary.interval_of(by_seed)
    if not math.isfinite(interval.mean):
        return "diverged"
    scale, digits = (1, 3) if column in summary.LOWER_IS_BETTER else (100, 1)
    mean = f"{scale * interval.mean:.{digits}f}"
    mean = f"**{mean}**" if is_best else mean
    if math.isnan(interval.low):
        return mean
    return f"{mean} ± {scale * interval.margin:.{digits}f}"


def outcome_table(table, subject):
    """Return what a method gains or loses against each other one.

    A difference is positive where the method is better, whichever direction
    the column has.
    """
    columns = columns_of({subject: table[subject]})
    tests = {name: summary.compare(table, subject, name) for name in columns}
    diverged = {name: summary.diverged_methods(table, name) for name in columns}

    def outcome(other, column):
        if diverged[column] & {subject, other}:
            return "diverged"
        return _outcome(tests[column].get(other), column)

    rows = [
        [other, *(outcome(other, name) for name in columns)]
        for other in table
        if other != subject
    ]
    note = (
        "Difference of the means over common seeds, positive where "
        f"`{subject}` is better, with the p-value of a paired t test, one "
        "for each difference: by chance one in twenty is below 0.05."
    )
    return f"{markdown([['against', *columns], *rows])}\n\n{note}"


def _outcome(test, column):
    if test is None:
        return "not measured"
    lower = column in summary.LOWER_IS_BETTER
    scale, digits = (-1, 3) if lower else (100, 1)
    difference = f"{scale * test.difference:+.{digits}f}"
    if math.isnan(test.p_value):
        return f"{difference} (of each seed)"
    return f"{difference} (p = {test.p_value:.2g})"


def markdown(rows):
    """Return a Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""One URL, many faces: the same answer as JSON, JSON Lines, CSV or text, chosen by `?format=` or by `Accept`."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from math import isfinite, isnan, log10
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray

Face = Literal["json", "jsonl", "csv", "text"]
Format = Annotated[Face | None, Query(alias="format", description="The form of the answer; default: by `Accept`, else JSON.", examples=["json"])]
MEDIA_TYPES: dict[str, Face] = {
    "application/json": "json",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "text/csv": "csv",
    "text/plain": "text",
}
CONTENT_TYPE: dict[Face, str] = {"json": "application/json", "jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8", "text": "text/plain; charset=utf-8"}
Record = dict[str, Any]
"""One line of a table."""
WIDTH, HEIGHT = 64, 12
"""Of a chart, in characters."""
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def face_of(request: Request, wanted: Face | None) -> Face:
    """The form that is asked for: `?format=`, else the most wanted of the media types in `Accept` that there are, else JSON."""
    if wanted:
        return wanted
    ranked = sorted((_ranked(part) for part in request.headers.get("accept", "").split(",")), key=lambda pair: -pair[1])
    for kind, share in ranked:
        if share > 0 and kind in MEDIA_TYPES:
            return MEDIA_TYPES[kind]
        if kind == "*/*":
            break
    return "json"


def json_answer(body: Any, status: int = 200, **headers: str) -> Response:
    """Strict JSON."""
    return Response(dumps(body), status, headers, "application/json")


def dumps(value: Any) -> str:
    """Strict JSON: a NaN that gets here is an error of ours."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def table_answer(face: Literal["jsonl", "csv"], records: Iterable[Record], *, columns: list[str]) -> Response:
    """A table, streamed line by line. Numbers that are not finite are words in CSV; in JSON Lines they are null, named in `nonfinite_value`."""
    lines = _csv(records, columns) if face == "csv" else (dumps(_plain(record)) + "\n" for record in records)
    return StreamingResponse(lines, media_type=CONTENT_TYPE[face], headers={"Vary": "Accept"})


def text_answer(text: str) -> Response:
    return Response(text, media_type=CONTENT_TYPE["text"], headers={"Vary": "Accept"})


def contents(example: str) -> dict[str, Any]:
    """The faces in the OpenAPI document, with a line of each that is not JSON."""
    return {"text/csv": {"schema": {"type": "string"}, "example": example}, "application/jsonl": {"schema": {"type": "string"}}, "text/plain": {"schema": {"type": "string"}}}


def word(number: float) -> str:
    """The name of a number that is not finite."""
    return "NaN" if isnan(number) else "Infinity" if number > 0 else "-Infinity"


def nullable(array: NDArray[Any]) -> list[Any]:
    """An array as nested lists, with null for what is not finite."""
    if np.issubdtype(array.dtype, np.integer) or np.isfinite(array).all():
        return array.tolist()
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()


def chart(x: list[float], y: list[float], *, log: bool, x_label: str) -> list[str]:
    """A line chart in characters. Points that are not finite (or, in the logarithm, not positive) are left out and counted."""
    drawn = [(a, b) for a, b in zip(x, y, strict=True) if isfinite(b) and (b > 0 or not log)]
    if not drawn:
        return ["(no finite points)"]
    heights = [log10(b) if log else b for _, b in drawn]
    low, high = min(heights), max(heights)
    left, right = drawn[0][0], drawn[-1][0]
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for (a, _), height in zip(drawn, heights, strict=True):
        column = round((a - left) / (right - left) * (WIDTH - 1)) if right > left else 0
        row = round((height - low) / (high - low) * (HEIGHT - 1)) if high > low else HEIGHT // 2
        grid[HEIGHT - 1 - row][column] = "•"
    top, bottom = (short(10**edge if log else edge) for edge in (high, low))
    marks = [top, *[""] * (HEIGHT - 2), bottom]
    lines = [f"{mark:>10} │{''.join(cells).rstrip()}" for mark, cells in zip(marks, grid, strict=True)]
    lines += [f"{'':>10} └{'─' * WIDTH}", f"{'':>11} {short(left):<{WIDTH - 12}}{short(right):>12}  {x_label}{', log scale' if log else ''}"]
    if len(drawn) < len(y):
        lines.append(f"{'':>12}{len(y) - len(drawn)} points cannot be drawn: not finite{' or not positive' if log else ''}")
    return lines


def columns_of(rows: list[list[str]]) -> list[str]:
    """Rows of words as aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows]


def short(number: Any) -> str:
    """A number in at most 10 characters."""
    if number is None:
        return "-"
    if isinstance(number, float) and not isfinite(number):
        return word(number)
    return f"{number:.5g}" if isinstance(number, float) else str(number)


def printable(text: str) -> str:
    """Text for a terminal: without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def safe_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _csv(records: Iterable[Record], columns: list[str]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    for count, record in enumerate(records, start=1):
        writer.writerow([_cell(record.get(column)) for column in columns])
        if count % 1000 == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value) if isfinite(value) else word(value)
    return safe_cell(value if not isinstance(value, dict | list) else dumps(value))


def _plain(record: Record) -> Record:
    found = {key: word(value) for key, value in record.items() if isinstance(value, float) and not isfinite(value)}
    return {key: None if key in found else value for key, value in record.items()} | ({"nonfinite_value": found} if found else {})


def _ranked(part: str) -> tuple[str, float]:
    kind, _, parameters = part.partition(";")
    quality = next((p.partition("=")[2] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
    try:
        return kind.strip().lower(), float(quality)
    except ValueError:
        return kind.strip().lower(), 0.0

"""What the ``chelate`` command can do."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import chelate
from chelate.checking import check_store
from chelate.cli.finding import find_dispatch, find_task, unfinished_here
from chelate.contracts.store import DispatchFilter
from chelate.embedding import current
from chelate.errors import ChelateError, ConfigError
from chelate.graph import Graph, Kind
from chelate.model import FINAL, DispatchRecord, NodeRecord, Status
from chelate.result import Result
from chelate.show.drawing import draw
from chelate.show.marks import plain, tally
from chelate.show.progress import Progress
from chelate.show.summary import (
    duration_text,
    iso_text,
    moment_text,
    result_as_json,
    result_as_text,
    table,
)

__all__ = [
    "app",
    "cancel",
    "fsck",
    "graph",
    "list_dispatches",
    "logs",
    "plugins",
    "print_json",
    "resume",
    "show",
    "version",
]

_LOOK = 0.5  # seconds between two looks at a running task's output

app = typer.Typer(
    name="chelate",
    help="Look at dispatches, cancel them, take them up again. CHELATE_HOME says where.",
    no_args_is_help=True,
    add_completion=False,
)
Id = Annotated[str, typer.Argument(help="Dispatch id, or its first characters (4 or more).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@app.command("ls")
def list_dispatches(
    status: Annotated[list[Status] | None, typer.Option(help="Only these; repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Only this lattice.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    sublattices: Annotated[
        bool, typer.Option("--all", help="Sub-workflows' dispatches, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List dispatches, newest first."""
    query = DispatchFilter(
        status=tuple(status or ()), name=name, roots_only=not sublattices, limit=limit
    )
    records = current().records(query)
    if as_json:
        print_json([_describe(record) for record in records])
        return
    if not records:
        typer.echo("No dispatches." if not (status or name) else "No such dispatches.")
        return
    rows = []
    for record in records:
        found = tally(record.counts)
        tasks = f"{found['done']}/{sum(found.values())}" if record.counts else ""
        rows.append(
            [
                record.dispatch_id,
                record.name,
                "held" if record.held else str(record.status),
                tasks,
                moment_text(record.started_at or record.created_at),
                duration_text(_seconds(record)),
            ]
        )
    head = ("ID", "LATTICE", "STATUS", "DONE", "STARTED", "TIME")
    typer.echo(table(head, rows, colour=_colourful()))


@app.command()
def show(dispatch_id: Id, as_json: Json = False) -> None:
    """Show a dispatch and its tasks."""
    gateway = current()
    result = Result(gateway, find_dispatch(gateway, dispatch_id))
    typer.echo(result_as_json(result) if as_json else result_as_text(result, colour=_colourful()))


@app.command()
def logs(
    dispatch_id: Id,
    task: Annotated[str, typer.Argument(help="Node id, or a task's name.")],
    stderr: Annotated[bool, typer.Option("--stderr", help="Standard error instead.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what a task has printed."""
    gateway = current()
    record = find_dispatch(gateway, dispatch_id)
    node_id, name = find_task(gateway.graph(record), task)
    stream = "stderr" if stderr else "stdout"
    shown = 0
    told = False
    while True:
        row = gateway.nodes(record.dispatch_id, [node_id]).get(node_id, NodeRecord(node_id))
        # Looked up before the output is read, so that an end in between is not missed.
        ended = row.status in FINAL or gateway.record(record.dispatch_id).status.final
        data = gateway.logs(record.dispatch_id, node_id, stream)
        if not as_json:
            sys.stdout.buffer.write(data[shown:])
            sys.stdout.buffer.flush()
            shown = max(shown, len(data))
        if not (ended or data or told):
            told = True
            typer.echo(
                f"Task {name!r} is {row.status}. What it prints can be read here once it has "
                "ended, and until then only by the process that runs it.",
                err=True,
            )
        if ended or not follow:
            break
        time.sleep(_LOOK)
    if as_json:
        print_json(
            {
                "dispatch_id": record.dispatch_id,
                "node_id": node_id,
                "name": name,
                "status": str(row.status),
                "stream": stream,
                "text": data.decode("utf-8", "replace"),
            }
        )


@app.command()
def graph(
    dispatch_id: Id,
    svg: Annotated[Path | None, typer.Option(help="Write a picture to this file.")] = None,
    text: Annotated[bool, typer.Option("--text", help="As text; so by default.")] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Constant arguments, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw a dispatch's graph with the status of its tasks."""
    gateway = current()
    record = find_dispatch(gateway, dispatch_id)
    whole = gateway.graph(record)
    rows = gateway.nodes(record.dispatch_id)
    drawing = draw(
        whole, statuses={i: str(row.status) for i, row in rows.items()}, parameters=parameters
    )
    if svg is not None:
        try:
            svg.write_text(drawing.svg, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The picture cannot be written to {svg}: {error}.") from error
    if as_json:
        print_json(_graph_document(record, whole, rows, parameters))
    elif text or svg is None:
        typer.echo(drawing.text)


@app.command()
def cancel(
    dispatch_id: Id,
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Node ids or names; all without any.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all of them ended.")] = False,
    as_json: Json = False,
) -> None:
    """Cancel a dispatch, or some of its tasks and what depends on them."""
    gateway = current()
    record = find_dispatch(gateway, dispatch_id)
    targets: list[int | str] | None = None
    if tasks:
        names = {node.name for node in gateway.graph(record).tasks()}
        targets = [int(t) if t.isdecimal() and t not in names else t for t in tasks]
    nobodys = record.dispatch_id in gateway.store.orphans()
    answer = gateway.cancel(record.dispatch_id, targets)
    if wait and not record.status.final:
        gateway.wait_cancelled(answer, targets is None, None)
    record = gateway.record(record.dispatch_id)
    sentence = answer.sentence(targets is None)
    if nobodys and not wait:
        sentence += " No process runs it at present; 'chelate resume' carries the cancel out."
    if not as_json:
        typer.echo(f"{sentence} Now: {record.status}." if wait else sentence)
        return
    print_json(
        {
            **_describe(record),
            "message": sentence,
            "cancelling": list(answer.live),
            "ended_before": list(answer.over),
        }
    )


@app.command()
def resume(as_json: Json = False) -> None:
    """Run what a process that is gone has left on this home, to its end."""
    gateway = current()
    done: dict[str, DispatchRecord] = {}
    troubles: dict[str, str] = {}
    with Progress(enabled=gateway.settings.progress) as progress:
        watch = progress.update if progress.active else None
        while left := unfinished_here(gateway, {*done, *troubles}):
            for record in left:
                if not as_json:
                    progress.clear()
                    typer.echo(f"Resuming {plain(record.name)} ({record.dispatch_id})")
                try:
                    ended = gateway.wait(record.dispatch_id, watch=watch)
                    done[ended.dispatch_id] = ended
                except ChelateError as error:
                    troubles[record.dispatch_id] = str(error)
    if as_json:
        print_json(
            {"resumed": [_describe(record) for record in done.values()], "troubles": troubles}
        )
    else:
        for record in done.values():
            typer.echo(f"{record.dispatch_id}  {plain(record.name)}  {record.status}")
        if not done and not troubles:
            typer.echo("Nothing to resume.")
    if troubles:
        first, why = next(iter(troubles.items()))
        message = f"{len(troubles)} could not be resumed; the first, {first}: {why}"
        if as_json:
            raise typer.Exit(1)
        raise ChelateError(message)


@app.command()
def fsck(
    store: Annotated[
        str | None, typer.Option(help="URL of the store; the configured one without.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not read stored values.")] = False,
    secret_pattern: Annotated[
        list[str] | None,
        typer.Option(help="Regular expression of what must occur nowhere; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the store, read only, also while kernels run; name what does not hold."""
    try:
        patterns = [re.compile(pattern.encode()) for pattern in secret_pattern or ()]
    except re.error as error:
        raise typer.BadParameter(f"--secret-pattern: {error}.") from error
    settings, plugins = current().settings, current().plugins
    url = store or settings.store or ""
    made_by = plugins.store(url.partition(":")[0] or "sqlite")
    chosen = made_by(url, settings.home)
    try:
        report = check_store(chosen, quick=quick, patterns=patterns)
    finally:
        chosen.close()
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        for found in report.findings:
            task = "" if found.node_id is None else f" task {found.node_id}"
            where = f" {found.dispatch_id}{task}" if found.dispatch_id else ""
            typer.echo(plain(f"{found.invariant}{where}: {found.what} {found.advice}"))
        typer.echo(report.sentence())
    if report.findings:
        raise typer.Exit(1)


@app.command()
def plugins(as_json: Json = False) -> None:
    """List what is installed: executors, triggers, stores, and what is broken about them."""
    rows = current().plugins.report()
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    head = ("NAME", "KIND", "DISTRIBUTION", "VERSION", "STATE", "ERROR")
    fields = [[r.name, r.kind, r.distribution, r.version, r.status, r.error] for r in rows]
    typer.echo(table(head, fields))


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    python = platform.python_version()
    if as_json:
        print_json({"chelate": chelate.__version__, "python": python})
    else:
        typer.echo(f"chelate {chelate.__version__} (Python {python})")


# -- printing ---------------------------------------------------------------------------------


def _describe(record: DispatchRecord) -> dict[str, Any]:
    return {
        "dispatch_id": record.dispatch_id,
        "name": record.name,
        "status": str(record.status),
        "root_dispatch_id": record.root_id,
        "parent_dispatch_id": record.parent_id,
        "created_at": iso_text(record.created_at),
        "start_time": iso_text(record.started_at),
        "end_time": iso_text(record.ended_at),
        "held": record.held,
        "cancel_requested": record.cancel_requested,
        "redispatched_from": record.redispatched_from,
        "counts": record.counts,
        "error": record.error,
    }


def _graph_document(
    record: DispatchRecord, whole: Graph, rows: dict[int, NodeRecord], parameters: bool
) -> dict[str, Any]:
    chosen = [node for node in whole.nodes if parameters or node.kind != Kind.PARAMETER]
    known = {node.id for node in chosen}
    nodes = []
    for node in chosen:
        policy = whole.policies[node.policy] if 0 <= node.policy < len(whole.policies) else None
        done = "COMPLETED" if node.kind == Kind.PARAMETER else "WAITING"
        nodes.append(
            {
                "id": node.id,
                "name": node.name,
                "kind": node.kind,
                "executor": policy.executor.name if policy else None,
                "status": str(rows[node.id].status) if node.id in rows else done,
                "needs": sorted(node.parents() & known),
                "line": node.line,
            }
        )
    return {"dispatch_id": record.dispatch_id, "name": whole.name, "nodes": nodes}


def _seconds(record: DispatchRecord) -> float | None:
    if record.started_at is None:
        return None
    return (record.ended_at or time.time()) - record.started_at


def _colourful() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2))

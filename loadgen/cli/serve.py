"""`moedge serve SERVICE`: one service in its own process. Options here are the service's settings, which the environment gives as well."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli.console import CommandError, command, stdout, table

if TYPE_CHECKING:
    from services.runtime.settings import ServiceSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Run one service of a stack that spans processes. Any setting of the service may follow as an option: "
    "`--port 50051` is MOEDGE_BROKER_PORT=50051. `--settings` lists them.",
)
_EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
ListSettings = Annotated[bool, typer.Option("--settings", help="List the settings of the service and end.")]


@app.command(context_settings=_EXTRA)
@command
def broker(context: typer.Context, settings: ListSettings = False) -> None:
    """Pick an edge server for each task, and stream the task to it and the answer back."""
    _serve("broker", context.args, settings)


@app.command(context_settings=_EXTRA)
@command
def worker(context: typer.Context, settings: ListSettings = False) -> None:
    """Run the model of one edge server."""
    _serve("worker", context.args, settings)


@app.command(context_settings=_EXTRA)
@command
def controller(context: typer.Context, settings: ListSettings = False) -> None:
    """Watch activations and ask for new merges."""
    _serve("controller", context.args, settings)


@app.command(context_settings=_EXTRA)
@command
def merger(context: typer.Context, settings: ListSettings = False) -> None:
    """Hold the full model and build merged ones."""
    _serve("merger", context.args, settings)


def _serve(service: str, args: list[str], list_settings: bool) -> None:
    if list_settings:
        _print_settings(service)
        return
    os.environ.update(as_environment(service, args))
    try:
        import_module(f"services.{service}.main").main()
    except SystemExit as ended:
        if isinstance(ended.code, str):  # a service that refuses its settings says why
            raise CommandError(ended.code) from None
        raise


def as_environment(service: str, args: list[str]) -> dict[str, str]:
    """`--port 1 --log-level=DEBUG` as variables of the service; it refuses those it does not know, by name."""
    values: dict[str, str] = {}
    rest = list(args)
    while rest:
        option = rest.pop(0)
        name, has_value, value = option.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise CommandError(f"{option!r}: settings are options such as --port 50051; see moedge serve {service} --settings")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise CommandError(f"{name}: needs a value")
            value = rest.pop(0)
        values[f"MOEDGE_{service.upper()}_{name[2:].replace('-', '_').upper()}"] = value
    return values


def _print_settings(service: str) -> None:
    rows = []
    for name, field in _settings_class(service).model_fields.items():
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else "unset" if value is None else str(value)
        rows.append((f"--{name.replace('_', '-')}", default, field.description or ""))
    stdout().print(table("", ("option", "default", "meaning"), rows, text_columns=3))
    stdout().print(f"Each is a variable too: --log-level is MOEDGE_{service.upper()}_LOG_LEVEL.")


def _settings_class(service: str) -> type[ServiceSettings]:
    found: type[ServiceSettings] = getattr(import_module(f"services.{service}.settings"), f"{service.capitalize()}Settings")
    return found

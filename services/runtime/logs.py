"""Logging, configured once in `main`: rich lines for people or one JSON object a line. Prompts never belong in a log.

JSON lines carry the ids of the task, request and trace that they were written for, from the call's `extra` or from the scope.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.logging import RichHandler

from services.runtime.scope import current

# Fields that a call may add by `extra={...}` and that both formats show.
EXTRA_FIELDS = ("task_id", "edge_id", "version", "request_id")

NOISY_LOGGERS = ("aiokafka", "asyncio", "grpc", "httpx", "matplotlib", "urllib3", "transformers")
# These report each failed attempt; what owns them says it once, in our words.
SILENT_LOGGERS = ("aiokafka", "opentelemetry")


def configure(log_format: Literal["human", "json"] = "human", level: str = "INFO", *, stream: TextIO | None = None) -> None:
    """Replaces the root handlers; logs go to stderr, so that standard output stays the program's result."""
    handler = _json_handler(stream) if log_format == "json" else _human_handler(stream)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in SILENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL if root.level > logging.DEBUG else logging.DEBUG)


def _json_handler(stream: TextIO | None) -> logging.Handler:
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    return handler


def _human_handler(stream: TextIO | None) -> logging.Handler:
    console = Console(file=stream, stderr=stream is None, soft_wrap=True)
    handler = RichHandler(console=console, show_path=False, markup=False, rich_tracebacks=False, log_time_format="[%X]")
    handler.setFormatter(_HumanFormatter("%(message)s"))
    return handler


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(current().fields() | _extras(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True).replace("\x7f", "\\u007f")  # the one control character that JSON lets pass


class _HumanFormatter(logging.Formatter):
    """Control characters that came with someone's input are shown, not sent to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        message = _printable(record.getMessage())
        extras = " ".join(f"{name}={_printable(value)}" for name, value in _extras(record).items())
        text = f"{message}  {extras}" if extras else message
        if record.exc_info:
            text += "\n" + "\n".join(_printable(line) for line in self.formatException(record.exc_info).split("\n"))
        return text


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _extras(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(getattr(record, name)) for name in EXTRA_FIELDS if hasattr(record, name)}

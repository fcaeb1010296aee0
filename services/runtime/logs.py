"""Logging, configured once in `main`: rich lines for people or one JSON object a line. Prompts never belong in a log."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.logging import RichHandler

# Fields that a call may add by `extra={...}` and that both formats show.
EXTRA_FIELDS = ("task_id", "edge_id", "version", "request_id")

NOISY_LOGGERS = ("aiokafka", "asyncio", "grpc", "httpx", "matplotlib", "urllib3", "transformers")


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
    # aiokafka reports each refused connection as an error; the event log says it once, in our words.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL if root.level > logging.DEBUG else logging.DEBUG)


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
        line.update(_extras(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class _HumanFormatter(logging.Formatter):
    """Control characters that came with someone's input are shown, not sent to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.getMessage())
        extras = " ".join(f"{name}={value}" for name, value in _extras(record).items())
        text = f"{message}  {extras}" if extras else message
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _extras(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(getattr(record, name)) for name in EXTRA_FIELDS if hasattr(record, name)}

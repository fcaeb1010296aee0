"""What reflection looks names up in: protobuf's pool, and methods too, which that does not find by name. `ghz` asks for its method."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool


class MethodsToo:
    """A descriptor pool for the reflection servicer. Raises `KeyError` for what is not known, as the pool does."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

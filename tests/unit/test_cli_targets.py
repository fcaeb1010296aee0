"""Targets as users write them."""

from __future__ import annotations

import socket

import pytest

from loadgen.cli.console import CommandError
from loadgen.cli.targets import address_of
from tests.fakes.processes import free_port


def test_an_address_is_taken_as_it_is():
    assert address_of("broker:50051") == "broker:50051"
    assert address_of("[::1]:50051") == "[::1]:50051"


def test_of_a_range_the_first_port_that_answers_is_taken():
    first = free_port(3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", first + 1))
        server.listen()
        assert address_of(f"127.0.0.1:{first}-{first + 2}") == f"127.0.0.1:{first + 1}"


def test_of_a_range_where_nothing_answers_the_first_port_is_named():
    first = free_port(2)
    assert address_of(f"127.0.0.1:{first}-{first + 1}") == f"127.0.0.1:{first}"


@pytest.mark.parametrize(
    "target", ["", "broker", "broker:", "broker:x", "broker:0", "broker:50059-50051", "broker:1-60000", "broker:70000"]
)
def test_anything_else_is_refused_by_name(target):
    with pytest.raises(CommandError, match="target"):
        address_of(target)

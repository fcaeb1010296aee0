"""`moedge certs`: the authority, certificates and tokens of a secured stack, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadgen.cli.console import CommandError, command, print_json, stdout
from loadgen.cli.options import Json

DEFAULT_OUT = Path("infra/secure/certs")  # where infra/compose.secure.yml looks unless CERTS_DIR says otherwise


@command
def certs(
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = DEFAULT_OUT,
    days: Annotated[int, typer.Option(min=1, max=825, help="How long the certificates of services are good for.", metavar="DAYS")] = 365,
    name: Annotated[
        list[str] | None, typer.Option(help="Another host name or address of the broker, for other clients than moedge. Repeatable.")
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="New certificates from the authority in DIR; tokens stay.")] = False,
    json: Json = False,
) -> None:
    """Make an authority, a certificate for each service and tokens for users, or renew the certificates.

    Exit codes: 0 written, 2 bad input.
    """
    try:
        from loadgen import certificates
    except ModuleNotFoundError as error:
        raise CommandError(f'{error}: install it with pip install "moedge[secure]"') from error
    from services.runtime.clock import SystemClock

    write = certificates.renew if renew else certificates.write_stack
    try:
        written = write(out, SystemClock().wall(), days, name or [])
    except certificates.CertificatesError as error:
        raise CommandError(str(error)) from error
    if json:
        print_json({"files": [str(path) for path in written], "days": days})
        return
    console = stdout()
    console.print(f"{len(written)} files in {out}, certificates good for {days} days", markup=False)
    if renew:
        console.print("restart the services one after the other: what runs keeps the old certificates")
        return
    console.print(f"  {out}/ca.key, *.token      keep them to yourself; ca.key is needed to renew only", markup=False)
    console.print("start:", markup=False)
    elsewhere = "" if out == DEFAULT_OUT else f"CERTS_DIR={out.absolute()} "
    console.print(f"  {elsewhere}docker compose -f docker-compose.yml -f infra/compose.secure.yml up --build --wait", markup=False)
    console.print("use:", markup=False)
    console.print(f"  export MOEDGE_CA={out}/ca.pem MOEDGE_TOKEN_FILE={out}/user.token", markup=False)
    console.print("  moedge status; moedge infer PROMPT", markup=False)
    console.print(f"  moedge edges pin NAME --token-file {out}/operator.token", markup=False)

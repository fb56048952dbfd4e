"""`mezzotint serve`: the page and the APIs; `mezzotint keys`: who may come in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MezzotintError, unknown
from .options import Device, Json, LoraDir, Sign
from .show import Show
from .train import ENGINES


def data_folder() -> Path:
    """Where a person's programs keep what they make (XDG base directories)."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "mezzotint"


Data = Annotated[
    Path,
    typer.Option(
        "--data",
        default_factory=data_folder,  # asked for when a command runs
        help="A folder for jobs, pictures, keys and the audit log.",
    ),
]


def serve(
    data: Data,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="An embedded model or a diffusers folder; may be given several times."
        ),
    ] = None,
    lora_dir: LoraDir = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; wider than this machine only with keys.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    device: Device = "auto",
    running: Annotated[int, typer.Option(min=1, max=64, help="Pictures drawn at a time.")] = 8,
    waiting: Annotated[int, typer.Option(min=1, help="Jobs that may wait; beyond, clients get 429.")] = 100,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds that a job has at most.")] = 900,
    memory: Annotated[float, typer.Option(min=0, help="Gigabytes of weights that are kept loaded.")] = 4,
    origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may call, for instance https://example.org.")
    ] = None,
    mark: Annotated[bool, typer.Option(help="Put an invisible mark into every picture.")] = True,
    sign: Sign = None,
    blocked: Annotated[
        Path | None, typer.Option(help="A file of words that prompts may not have, one a line.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Who draws: here, this process; ray, replicas on a Ray cluster.")
    ] = "here",
    replicas: Annotated[int, typer.Option(min=1, help="With --engine ray: processes that draw.")] = 2,
) -> None:
    """Serve the page at / and the APIs: native, OpenAI Images (/v1), AUTOMATIC1111 (/sdapi/v1)."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    try:
        from ..serve.app import run
    except ImportError as error:
        raise MezzotintError(
            f"serving needs more packages ({error.name}): pip install 'mezzotint[serve]'"
        ) from error
    from ..serve.settings import Limits, Settings

    settings = Settings(
        data=data, models=tuple(model or ["emoji"]), extras=tuple(lora_dir or ()),
        host=host, port=port, origins=tuple(origin or ()), device=device,
        running=running, memory=memory * 1e9, mark=mark, sign=sign, blocked=blocked,
        limits=Limits(waiting=waiting, deadline=deadline),
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    Show(False).note(f"open http://{shown}:{port}/ when it is ready; pictures lie in {data}; Ctrl-C stops")
    if engine == "ray":
        from ..serve.on_ray import painters

        with painters(settings, replicas) as painter:
            run(settings, painter)
        return
    run(settings)


keys = typer.Typer(help="API keys of the service.", no_args_is_help=True)


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose it is; stands in the audit log.")],
    data: Data,
    role: Annotated[str, typer.Option(help="user: own jobs; admin: everybody's, and the metrics.")] = "user",
    rate: Annotated[float | None, typer.Option(min=0.01, help="Requests a minute.")] = None,
    quota: Annotated[int | None, typer.Option(min=1, help="Pictures in 24 hours.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: it is shown this once, only its hash is kept."""
    from ..serve.keys import Keys
    from ..serve.store import Store

    key = Keys(Store(data)).add(name, role=role, rate=rate, quota=quota)
    Show(as_json).result(key, event="key", name=name, key=key)


@keys.command("list")
def list_keys(data: Data, as_json: Json = False) -> None:
    """Who has a key."""
    from ..serve.store import Store

    show = Show(as_json)
    for row in Store(data).all_keys():
        fields = {name: row[name] for name in ("name", "role", "rate", "quota")}
        show.result(
            "  ".join(f"{name} {value}" for name, value in fields.items() if value is not None), **fields
        )


@keys.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument()], data: Data) -> None:
    """Take a key back; it is refused from the next request on."""
    from ..serve.keys import Keys
    from ..serve.store import Store

    Keys(Store(data)).revoke(name)

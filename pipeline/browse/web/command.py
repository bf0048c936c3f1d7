"""`alignkd shards browse`."""

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.errors import clean_errors, fail
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.shards.options import LOCATION, STORE, images_option, tower_options

if TYPE_CHECKING:
    from alignkd.pipeline.browse.web.opened import Browser

FOLDER = click.Path(path_type=Path)
EXTRA = ("jinja2", "starlette", "uvicorn")


@click.command()
@STORE
@click.argument("other", type=LOCATION, required=False)
@click.option("--student", help="Folder or hub id of a student, shown beside the teacher.")
@click.option("--student-vision-config", type=FOLDER, help="Folder with the student's vision config.json, if apart.")
@images_option
@tower_options
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="Port of the page.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; the default is reached from this machine only.",
)
@click.option("--open/--no-open", "opens", default=None, help="Open a web browser; by default on a desktop only.")
@clean_errors
def browse(
    store: Path | str,
    other: Path | str | None,
    student: str | None,
    student_vision_config: Path | None,
    images: Path | None,
    checkpoint: str | None,
    vision_config: Path | None,
    port: int,
    host: str,
    opens: bool | None,
) -> None:
    """Look into STORE with a web browser, and compare it with OTHER.

    Prints the URL of the page, and serves it until Ctrl-C. An index is made next to the store at the first use.

    Example: alignkd shards browse runs/store --images images
    """
    _require_extra()
    from alignkd.pipeline.browse.web.opened import Browser

    options = {
        "images": images,
        "checkpoint": checkpoint,
        "vision_config": vision_config,
        "student": student,
        "student_vision_config": student_vision_config,
    }
    with Browser.open([store] if other is None else [store, other], **options) as browser:
        _serve(browser, host, port, _has_desktop() if opens is None else opens)


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        fail(f"alignkd shards browse needs {', '.join(missing)}: pip install 'alignkd[browse]'")


def _serve(browser: "Browser", host: str, port: int, opens: bool) -> None:
    from alignkd.pipeline.browse.web.app import guarded_app
    from alignkd.pipeline.browse.web.server import listening, make_server

    with listening(host, port) as socket:
        port = int(socket.getsockname()[1])
        token = secrets.token_urlsafe(24)
        url = f"http://{shown_host(host)}:{port}/?token={token}"

        def started() -> None:
            click.echo(url)
            sys.stdout.flush()
            say("Ctrl-C ends the server")
            if opens:
                import webbrowser

                webbrowser.open(url)

        make_server(guarded_app(browser, token=token, host=host, port=port), started=started).run(sockets=[socket])


def shown_host(host: str) -> str:
    """The host of the printed URL: loopback for a server that listens at every address."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host.strip('[]')}]" if ":" in host else host


def _has_desktop() -> bool:
    """Whether a web browser would open a window; on a server it would take over the terminal."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

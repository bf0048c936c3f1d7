"""The web application: which URL is answered by what. The only module that imports Starlette and Jinja2."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason
from alignkd.pipeline.browse.web import comparisons, listing, progress, records
from alignkd.pipeline.browse.web.asking import Answer, Asked, BadRequestError, NotThereError, error_answer
from alignkd.pipeline.browse.web.guard import App, Guard
from alignkd.pipeline.browse.web.opened import Browser

HERE = Path(__file__).parent


class _Place(Convertor[int]):
    """A position in a path: as many digits as `Asked.number` takes; more are no page."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("place", _Place())
PAGES = {
    "/": "list",
    "/record/{position:place}": "record",
    "/compare/{key}": "compare",
    "/dump": "dump",
}
Handler = Callable[[Browser, Asked], Answer]
ANSWERS: dict[str, Handler] = {
    "/api/state": progress.state,
    "/api/dump": progress.dump,
    "/api/columns": listing.columns,
    "/api/page": listing.page,
    "/api/histogram": listing.histogram,
    "/api/neighbours": listing.neighbours,
    "/api/record/{position:place}": records.record,
    "/api/attention/{position:place}": records.attention,
    "/api/heads/{position:place}": records.heads,
    "/api/image/{position:place}/{number:place}": records.image,
    "/api/view/{position:place}.png": records.view,
    "/api/compare/{key}": comparisons.compare,
}
log = logging.getLogger(__name__)


def guarded_app(browser: Browser, *, token: str, host: str, port: int) -> App:
    """The application, for requests that carry the token and name this server as their host."""
    return Guard(make_app(browser), token=token, host=host, port=port)


def make_app(browser: Browser) -> Starlette:
    """Pages, static files of the package, and answers in JSON and PNG."""
    # autoescape: what a store contains is text in every template
    templates = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    routes: list[BaseRoute] = [Route(path, _page(browser, templates, name)) for path, name in PAGES.items()]
    routes += [Route(path, _answered(browser, handler)) for path, handler in ANSWERS.items()]
    routes.append(Mount("/static", StaticFiles(directory=HERE / "static")))
    return Starlette(routes=routes, exception_handlers={404: _no_page})


def _page(browser: Browser, templates: Environment, name: str) -> Callable[[Request], Any]:
    template = templates.get_template(f"{name}.html")

    async def page(request: Request) -> Response:
        # the name of a folder may be no UTF-8
        return HTMLResponse(template.render(page=name, browser=browser).encode("utf-8", "replace"))

    return page


def _answered(browser: Browser, handler: Handler) -> Callable[[Request], Any]:
    async def answered(request: Request) -> Response:
        query = {name: request.query_params.getlist(name) for name in request.query_params}
        found = await run_in_threadpool(_answer, handler, browser, Asked(request.path_params, query))
        return Response(found.body, found.status, media_type=found.media_type)

    return answered


def _answer(handler: Handler, browser: Browser, asked: Asked) -> Answer:
    """What `handler` answers; its error as one line, since one bad record must not end the server."""
    try:
        return handler(browser, asked)
    except BadRequestError as error:
        return error_answer(str(error), 400)
    except (NotThereError, IndexError) as error:
        return error_answer(str(error), 404)
    except AlignkdError as error:
        return error_answer(str(error), 422)
    except OSError as error:
        return error_answer(f"{error.filename or 'the store'}: {reason(error)}; {next_step(error)}", 422)
    except Exception as error:
        log.exception("a request failed")
        return error_answer(f"internal error: {type(error).__name__}: {error}", 500)


async def _no_page(request: Request, error: Exception) -> Response:
    return Response("alignkd shards browse: no such page; the list is at /\n", 404, media_type="text/plain")

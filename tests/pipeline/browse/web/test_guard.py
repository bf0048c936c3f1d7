"""Who may ask, without a web browser: token, Host header, headers of every answer."""

import http.client
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from browsed_store import made_store

from alignkd.pipeline.browse.web.guard import names_this_server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Any:
    return serve(made_store(tmp_path_factory.mktemp("guard") / "store", samples=20))


def ask(served: Any, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer; `host` replaces the Host header."""
    address = served.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address)
    connection.request(
        "GET", path, headers={"Host": address} | {name.title(): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


PATHS = ("/", "/record/0", "/dump", "/api/state", "/api/page", "/api/image/0/0", "/static/list.js", "/nothing")


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_answered(served: Any, path: str) -> None:
    for more in ("", "?token=", "?token=wrong", "?token=token-of-the-test", "?TOKEN=token-of-the-tests"):
        status, headers, text = ask(served, path + more)
        assert status == 403 and "token" in text and "set-cookie" not in headers, more
    port = served.url.rpartition(":")[2]
    for cookie in ("", "alignkd-browse-1=token-of-the-tests", f"alignkd-browse-{port}=other", '=;=;,"\\'):
        assert ask(served, path, cookie=cookie)[0] == 403, cookie


def test_the_token_in_the_url_becomes_a_cookie(served: Any) -> None:
    port = served.url.rpartition(":")[2]
    status, headers, _ = ask(served, "/?token=token-of-the-tests")
    assert status == 200
    assert headers["set-cookie"] == f"alignkd-browse-{port}=token-of-the-tests; HttpOnly; SameSite=Strict; Path=/"
    cookie = headers["set-cookie"].partition(";")[0]
    for path, expected in zip(PATHS, (200, 200, 200, 200, 200, 200, 200, 404), strict=True):
        status, headers, _ = ask(served, path, cookie=cookie)
        assert status == expected and "set-cookie" not in headers, path
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store" and "access-control-allow-origin" not in headers


def test_cookies_of_other_servers_do_not_matter(served: Any) -> None:
    """All servers of a host share their cookies, also those of no valid form."""
    own = f"alignkd-browse-{served.url.rpartition(':')[2]}=token-of-the-tests"
    for cookie in (f'{{"a": 1}}=x; {own}', f'a b=x"; {own}', f"{own}; =;,", f'"; {own}; x'):
        assert ask(served, "/api/state", cookie=cookie)[0] == 200, cookie


def test_a_position_of_many_digits_is_no_page(served: Any) -> None:
    for path in ("/record/{}", "/api/record/{}", "/api/view/{}.png", "/api/image/{}/0", "/api/image/0/{}"):
        assert ask(served, f"{path.format('9' * 5000)}?token=token-of-the-tests")[0] == 404, path
        assert ask(served, f"{path.format('9' * 18)}?token=token-of-the-tests")[0] in (200, 404), path


def test_a_folder_whose_name_is_no_utf8(tmp_path: Path, serve: Any) -> None:
    served = serve(made_store(tmp_path / os.fsdecode(b"st\xff\xfe<b>"), samples=20))
    for path in ("/", "/record/0", "/dump", "/api/state", "/api/page", "/api/record/0", "/api/dump"):
        status, _, text = ask(served, f"{path}?token=token-of-the-tests")
        assert status == 200, path
        assert "st??<b>" not in text or path.startswith("/api/"), path


def test_another_host_is_refused_even_with_the_token(served: Any) -> None:
    port = served.url.rpartition(":")[2]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        "localhost:1",
        "",
        "127.0.0.1:x",
        "127.0.0.1:" + "9" * 5000,
    ):
        status, headers, text = ask(served, "/?token=token-of-the-tests", host=host)
        assert status == 421 and "Host" in text and "set-cookie" not in headers, host
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert ask(served, "/?token=token-of-the-tests", host=host)[0] == 200, host


@pytest.mark.parametrize(
    ("given", "host", "named"),
    [
        ("10.0.0.5:80", "127.0.0.1", False),
        ("10.0.0.5:80", "10.0.0.5", True),
        ("10.0.0.5:80", "0.0.0.0", True),
        ("[fe80::1]:80", "::", True),
        ("rebound.example:80", "0.0.0.0", False),
        ("node7:80", "node7", True),
    ],
)
def test_a_server_at_another_address_has_its_own_names(given: str, host: str, named: bool) -> None:
    assert names_this_server(given, host, 80) is named


def test_files_outside_of_the_static_folder_are_not_served(served: Any) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/",
    ):
        status, _, text = ask(served, f"{path}?token=token-of-the-tests")
        assert status == 404 and "import" not in text and "root" not in text, path


def test_pages_contain_no_inline_script_and_no_style(served: Any) -> None:
    for path in ("/", "/record/0", "/compare/x", "/dump"):
        text = ask(served, f"{path}?token=token-of-the-tests")[2]
        assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", text) == []


@pytest.mark.parametrize(
    ("path", "status", "line"),
    [
        ("/api/record/9999", 404, "position 9999"),
        ("/api/page?offset=-1", 400, "offset is '-1', expected a whole number from 0"),
        ("/api/page?limit=0", 400, "limit is '0'"),
        ("/api/page?sort=nothing", 422, "nothing"),
        ("/api/page?range.tokens=7", 400, "range.tokens is '7', expected LOW..HIGH"),
        ("/api/page?range.tokens=a..", 400, "range.tokens has the bound 'a'"),
        ("/api/page?range.tokens=nan..", 400, "range.tokens has the bound 'nan'"),
        ("/api/page?show=none", 400, "show is 'none'"),
        ("/api/page?store=1", 400, "store is 1, open are 1"),
        ("/api/attention/0?head=x", 400, "head is 'x', expected a number or mean"),
        ("/api/attention/0?head=99", 422, "99"),
        ("/api/attention/0?query=999999999999999999999", 400, "query is"),
        ("/api/histogram?column=id", 422, "id"),
        ("/api/image/0/7", 404, ""),
    ],
)
def test_wrong_values_get_one_line(served: Any, path: str, status: int, line: str) -> None:
    found, _, text = ask(served, f"{path}{'&' if '?' in path else '?'}token=token-of-the-tests")
    error = json.loads(text)["error"]
    assert found == status and line in error and "\n" not in error and "Traceback" not in error


def test_a_damaged_record_is_one_line_and_the_server_goes_on(tmp_path: Path, serve: Any) -> None:
    store = made_store(tmp_path / "store", samples=40)
    served = serve(store)
    for file in (store / "shards").glob("*/entry_logprobs/c.0"):
        content = bytearray(file.read_bytes())
        content[len(content) // 4] ^= 255
        file.write_bytes(content)
    lines = []
    for position in range(len(served.browser.stores[0].reader)):
        status, _, text = ask(served, f"/api/record/{position}?token=token-of-the-tests")
        lines += [json.loads(text)["error"]] if status != 200 else []
    assert lines and all("\n" not in line and "shard" in line for line in lines)
    assert ask(served, "/api/page?token=token-of-the-tests")[0] == 200

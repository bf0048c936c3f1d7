"""The documentation as a reader opens it: from a folder, without network, in a browser.

Usage: python site_check.py SITE
"""

import re
import shutil
import sys
from pathlib import Path

# an element that loads something from another server; links that a reader clicks are no such
_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\ssrc=["']?(?:https?:)?//|<link\b[^>]*\shref=["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//|@import"""
)


def main(site: Path) -> None:
    """Look through the files, then open the site."""
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    loading = [str(path) for path in files if _LOADS.search(path.read_text(encoding="utf-8"))]
    assert files and not loading, f"loads something from another server: {loading}"
    print(f"site: {len(files)} pages and style sheets, none loads anything from another server")
    if (browser := shutil.which("chromium")) is None:
        print("site: not opened in a browser, because there is no chromium")
    else:
        look(site, browser)


def look(site: Path, browser: str) -> None:
    """Search, follow the first result, switch the colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        problems, asked = list[str](), list[str]()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").resolve().as_uri())
        page.locator("input.md-search__input").click()
        page.locator("input.md-search__input").press_sequentially("counterfactual")
        first = page.locator("a.md-search-result__link").first
        first.wait_for(timeout=60_000)
        first.click()
        page.wait_for_url("**/counterfactual.html**", timeout=60_000)
        shown = page.locator("h1").inner_text()
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("label[for^=__palette]:visible").click()
        page.wait_for_function("before => getComputedStyle(document.body).backgroundColor != before", arg=before)
        chromium.close()
    outside = [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert not problems and not outside, (problems, outside)
    print(f"site: search from a folder leads to {shown.rstrip('¶')!r}; {len(asked)} files loaded, none from a server")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

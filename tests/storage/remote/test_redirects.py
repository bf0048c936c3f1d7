"""Where a web server may send a reader."""

from types import SimpleNamespace

import pytest

from alignkd.storage.errors import RemoteError
from alignkd.storage.remote.http import HttpStore
from alignkd.storage.remote.settings import RemoteSettings


@pytest.mark.parametrize("location", ["https://host/store", "http://host/store"])
@pytest.mark.parametrize("final", ["https://other/store", "http://other/store"])
def test_a_redirect_never_leaves_encryption(location: str, final: str) -> None:
    store = HttpStore(location, RemoteSettings())
    response = SimpleNamespace(status=200, geturl=lambda: final)
    if location.startswith("https:") and final.startswith("http:"):
        with pytest.raises(RemoteError, match="the server redirects from https to http; use another server"):
            store._check_status(response, "manifest.json")  # type: ignore[arg-type]
    else:
        store._check_status(response, "manifest.json")  # type: ignore[arg-type]

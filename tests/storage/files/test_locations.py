"""Places where no store can be are refused in one line that names those where one can."""

import re
from pathlib import Path

import pytest

from alignkd.storage import StoreError, StoreReader
from alignkd.storage.files.location import as_location, check_location
from alignkd.storage.places import open_files

FOREIGN = ("gs://b/s", "az://b/s", "abfss://c@account.dfs/s", "hdfs://name:9000/s", "ftp://h/s", "file:///data/s", "S3://b/s",
           "gs:/b/s", "hf://datasets/a/b")  # fmt: skip


@pytest.mark.parametrize("location", FOREIGN)
@pytest.mark.parametrize("writing", [False, True])
def test_a_scheme_of_others_is_named_with_what_is_supported(location: str, writing: bool) -> None:
    scheme = re.escape(location.partition(":")[0])
    line = rf"scheme is {scheme}, expected a folder, s3://BUCKET/PREFIX or, to read only, http\(s\)://HOST/PATH"
    with pytest.raises(StoreError, match=line):
        check_location(as_location(location), writing=writing)
    with pytest.raises(StoreError, match=line):
        open_files(as_location(location))
    with pytest.raises(StoreError, match=line):
        StoreReader(as_location(location))


@pytest.mark.parametrize("location", ["s3://", "s3://B_AD/x"])
def test_a_url_without_a_bucket_is_refused(location: str) -> None:
    with pytest.raises(StoreError, match="is not a bucket name; expected s3://BUCKET/PREFIX"):
        check_location(location)


def test_a_web_server_is_only_read() -> None:
    check_location("https://host/store")
    with pytest.raises(StoreError, match=r"store https://host/store: can only be read; write to a folder or to s3://"):
        check_location("https://user:secret@host/store?token=secret", writing=True)
    with pytest.raises(StoreError) as refused:
        check_location("gs://user:secret@host/store?token=secret")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "location", ["store", "/a/b", "./x", "c:/x", "my store/2024-01-01T10:00", "a:b/c", "odd+name:/x"]
)
def test_folders_are_folders(location: str) -> None:
    check_location(Path(location), writing=True)
    check_location("s3://bucket/prefix", writing=True)

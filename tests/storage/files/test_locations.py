"""Places where no store can be are refused in one line that names those where one can."""

import re
from pathlib import Path

import pytest

from alignkd.storage import StoreError, StoreReader
from alignkd.storage.files.hub_location import parse_hub_location
from alignkd.storage.files.location import as_location, check_location
from alignkd.storage.places import open_files

FOREIGN = (
    "gcs://b/s",
    "wasb://c@account.blob/s",
    "hdfs://name:9000/s",
    "ftp://h/s",
    "file:///data/s",
    "S3://b/s",
    "oss:/b/s",
)
READ_ONLY = ("gs://b/s", "gs:/b/s", "az://b/s", "abfss://c@account.dfs/s", "https://host/store")


@pytest.mark.parametrize("location", FOREIGN)
@pytest.mark.parametrize("writing", [False, True])
def test_a_scheme_of_others_is_named_with_what_is_supported(location: str, writing: bool) -> None:
    scheme = re.escape(location.partition(":")[0])
    line = (
        rf"scheme is {scheme}, expected a folder, s3://BUCKET/PREFIX or, to read only, hf://datasets/ORG/NAME, "
        r"http\(s\)://HOST/PATH, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; mount or copy"
    )
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
    for location in (
        "gs://user:secret@host/x",
        "abfs://user:secret@host/x",
        "hf://secret@datasets/o/n",
        "ftp://u:secret@h",
    ):
        with pytest.raises(StoreError) as refused:
            check_location(location)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("location", READ_ONLY)
def test_what_is_only_read_is_not_written(location: str) -> None:
    check_location(as_location(location))
    with pytest.raises(StoreError, match=r"can only be read; write to a folder or to s3://BUCKET/PREFIX"):
        check_location(as_location(location), writing=True)


def test_the_hub_is_written_by_push() -> None:
    check_location(as_location("hf:/datasets/o/n"))
    with pytest.raises(StoreError, match=r"then `alignkd shards push FOLDER hf://datasets/o/n`"):
        check_location("hf://datasets/o/n", writing=True)


@pytest.mark.parametrize(
    "location, repo, prefix, revision",
    [
        ("hf://datasets/o/n", "o/n", "", None),
        ("hf://datasets/o/n/", "o/n", "", None),
        ("hf://datasets/o/n@v1.0", "o/n", "", "v1.0"),
        ("hf://datasets/o/n/a/b@main", "o/n", "a/b", "main"),
        ("hf://datasets/o/n/a@feature/x", "o/n", "a", "feature/x"),
        ("hf://datasets/o/n@main/a/b", "o/n", "a/b", "main"),
        ("hf://datasets/o/n@refs/pr/1", "o/n", "", "refs/pr/1"),
        ("hf://datasets/o/n@refs/pr/1/a", "o/n", "a", "refs/pr/1"),
    ],
)
def test_locations_of_the_hub(location: str, repo: str, prefix: str, revision: str | None) -> None:
    """Both spellings; `url` is the hub's own, and means the same."""
    found = parse_hub_location(location)
    assert (found.repo, found.prefix, found.revision) == (repo, prefix, revision)
    assert parse_hub_location(found.url) == found


@pytest.mark.parametrize(
    "location, problem",
    [
        ("hf://o/n", "is not a data set of the hub; expected hf://datasets/ORG/NAME"),
        ("hf://models/o/n", "is not a data set of the hub"),
        ("hf://datasets/o", "'o' is not ORG/NAME"),
        ("hf://datasets/o/n/../m", "path is '../m'"),
        ("hf://datasets/o/n//m", "path is '/m'"),
        ("hf://datasets/o/n@", "revision is ''"),
        ("hf://datasets/o/n/a@b@c", "revision is 'b@c'"),
        ("hf://datasets/o/n?x=1", "is not ORG/NAME"),
    ],
)
def test_locations_that_the_hub_cannot_have(location: str, problem: str) -> None:
    with pytest.raises(StoreError, match=re.escape(problem)):
        check_location(location)


@pytest.mark.parametrize(
    "location", ["store", "/a/b", "./x", "c:/x", "my store/2024-01-01T10:00", "a:b/c", "odd+name:/x"]
)
def test_folders_are_folders(location: str) -> None:
    check_location(Path(location), writing=True)
    check_location("s3://bucket/prefix", writing=True)

"""Pushing a store: what the hub holds afterwards, and at every commit on the way; what is not sent again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import READER, WRITER, HubServer, Repo

from alignkd.storage import CorruptStoreError, Manifest, StoreError, StoreReader, verify_store
from alignkd.storage.errors import RemoteError
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.read.listing import list_store
from alignkd.storage.schema.commit_record import commit_name
from alignkd.storage.schema.read_from import ImageFolder, ReadFrom
from alignkd.storage.schema.sources import Addition, StoredSource
from alignkd.storage.tools.push import push as push_module
from alignkd.storage.tools.push.card import CardFacts
from alignkd.storage.tools.push.push import PushOptions, PushReport, push_store
from alignkd.storage.write.grow import sealed_manifest

# of the client itself
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO, URL = "org/name", "hf://datasets/org/name"
HubStores = Callable[[str], Path]
TreeBytes = Callable[[Path], dict[str, bytes]]


def push(folder: Path, url: str = URL, **options: Any) -> PushReport:
    return push_store(folder, url, PushOptions(**options))


def below(repo: Repo, prefix: str = "", revision: str = "main") -> dict[str, bytes]:
    """The files of a folder of a data set, without what is not of the store."""
    files = {path[len(prefix) :]: data for path, data in repo.files(revision).items() if path.startswith(prefix)}
    return {path: data for path, data in files.items() if path not in ("README.md", ".gitattributes")}


def one_line(message: str, work: Callable[[], object], kind: type[StoreError] = StoreError) -> str:
    with pytest.raises(kind) as raised:
        work()
    assert message in str(raised.value), raised.value
    assert "\n" not in str(raised.value)
    return str(raised.value)


def sent_bytes(hub: HubServer) -> int:
    return sum(one.num_bytes for one in hub.asked("PUT", "/storage/"))


def assert_every_commit_is_sound(repo: Repo, sizes: set[int], tmp_path: Path) -> None:
    """At every commit the data set is no store yet, or a store that verifies; `sizes`: their numbers of records."""
    found = set()
    for number, commit in enumerate(repo.commits):
        files = below(repo, revision=commit)
        if "manifest.json" not in files:
            assert not any(path.startswith("commits/") for path in files)
            continue
        folder = tmp_path / f"commit-{number}"
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        report = verify_store(folder, deep=True)
        assert report.ok, report.problems
        found.add(report.num_records)
    assert found == sizes


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_new_data_set(
    hub: HubServer,
    hub_stores: HubStores,
    tree_bytes: TreeBytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    backend: str,
) -> None:
    """Small commits: also where it takes several."""
    monkeypatch.setattr(push_module, "COMMIT_FILES", 3)
    folder = hub_stores(backend)
    report = push(folder, private=True, message="targets")
    repo = hub.repos[REPO]
    assert below(repo) == tree_bytes(folder) and repo.private and report.created
    assert (report.shards, report.replaced, report.card) == ((0, 1), (), "written")
    assert report.commit == repo.branches["main"] and report.files == len(tree_bytes(folder)) + 1
    assert set(repo.messages) == {"initial commit", "targets"} and len(repo.messages) > 3
    assert_every_commit_is_sound(repo, {4}, tmp_path)
    assert list_store(URL) == list_store(folder) and verify_store(URL, deep=True).ok
    hub.seen.clear()
    again = push(folder)
    assert (again.shards, again.files, again.card, again.created) == ((), 0, "unchanged", False)
    assert not hub.asked("POST", "/commit/") and not hub.asked("PUT", "")


def test_a_path_and_a_branch(hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes) -> None:
    """Two stores in one data set; a branch of its own."""
    push(hub_stores("zarr"), f"{URL}/a/zarr")
    push(hub_stores("webdataset"), f"{URL}/a/tar@main")
    push(hub_stores("webdataset"), f"{URL}@next/b")
    repo = hub.repos[REPO]
    assert below(repo, "a/zarr/") == tree_bytes(hub_stores("zarr"))
    assert below(repo, "a/tar/") == below(repo, "b/", "next") == tree_bytes(hub_stores("webdataset"))
    assert not below(repo, "b/") and "a/tar/README.md" in repo.files()
    assert verify_store(f"{URL}/a/tar", deep=True).ok and verify_store(f"{URL}/b@next", deep=True).ok


def test_a_grown_store_is_pushed_by_what_is_new(
    hub: HubServer,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    tree_bytes: TreeBytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A reader that was opened before continues with what it saw."""
    monkeypatch.setattr(push_module, "COMMIT_FILES", 3)
    manifest = make_manifest(num_samples=5, shard_size=3, backend="webdataset")
    folder = write_store(tmp_path / "store", manifest)
    push(folder, facts=CardFacts(licence="mit", teacher="org/teacher"))
    before = StoreReader(URL)
    old = {path: len(data) for path, data in tree_bytes(folder).items()}
    sources = (StoredSource(name="first", num_samples=0), StoredSource(name="more", num_samples=6))
    grown = manifest.changed(additions=[Addition(added="2026-11-28T12:00:00Z", sources=sources, num_samples=6)])
    write_store(folder, grown)
    hub.seen.clear()
    report = push(folder)
    new = {
        path: len(data) for path, data in tree_bytes(folder).items() if path not in old and path.startswith("shards")
    }
    assert report.shards == (2, 3) and sent_bytes(hub) == sum(new.values())
    assert below(hub.repos[REPO]) == tree_bytes(folder) and list_store(URL) == list_store(folder)
    assert [str(record.id) for record in before] == [str(record.id) for record in list(StoreReader(folder))[:5]]
    assert_every_commit_is_sound(hub.repos[REPO], {5, 11}, tmp_path)
    card = hub.repos[REPO].files()["README.md"].decode()
    assert "| records | 11 |" in card and "license: mit" in card and "`org/teacher`" in card
    shutil.rmtree(folder)
    write_store(folder, manifest)
    one_line("it has grown", lambda: push(folder))


def test_a_shard_that_was_done_again_replaces_its_predecessor(
    hub: HubServer,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    make_record: Callable[..., Any],
    tree_bytes: TreeBytes,
    tmp_path: Path,
) -> None:
    manifest = make_manifest(num_samples=5, shard_size=3, backend="webdataset")
    folder = write_store(tmp_path / "store", manifest, quarantine=(0, 1, 2))
    push(folder)
    from alignkd.storage import open_writer

    writer = open_writer(folder, manifest)
    writer.redo([0, 1])
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                sink.append(make_record(manifest, index))
            sink.commit()
    report = push(folder)
    assert report.replaced == report.shards == (0, 1) and below(hub.repos[REPO]) == tree_bytes(folder)
    assert_every_commit_is_sound(hub.repos[REPO], {2, 5}, tmp_path)


def test_a_shard_that_is_done_again_meanwhile(
    hub: HubServer,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A dump replaces a commit record right after it was read: the hub holds the state that was read."""
    manifest = make_manifest(num_samples=5, shard_size=3, backend="webdataset")
    folder = write_store(tmp_path / "store", manifest, quarantine=(1,))
    later = write_store(tmp_path / "later", manifest, quarantine=(0, 2))
    record, changed = commit_name(1), (later / commit_name(1)).read_bytes()
    read = LocalFiles.read

    def replaced(files: LocalFiles, path: str, limit: int) -> bytes:
        data = read(files, path, limit)
        if path == record:
            (folder / record).write_bytes(changed)
        return data

    before = (folder / record).read_bytes()
    assert before != changed
    monkeypatch.setattr(LocalFiles, "read", replaced)
    push(folder)
    monkeypatch.undo()
    assert below(hub.repos[REPO])[record] == before


def test_a_shard_that_is_removed_meanwhile(
    hub: HubServer, hub_stores: HubStores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(hub_stores("webdataset"), folder)
    compared = push_module.Comparison.at

    def then_removed(*arguments: Any) -> Any:
        found = compared(*arguments)
        shutil.rmtree(folder / "shards", ignore_errors=True)
        return found

    monkeypatch.setattr(push_module.Comparison, "at", then_removed)
    one_line("is gone since the command began", lambda: push(folder))
    assert "manifest.json" not in hub.repos[REPO].files()
    (tmp_path / "file").touch()
    one_line("manifest.json", lambda: push(tmp_path / "file"))


def test_a_path_that_the_client_refuses(hub: HubServer, hub_stores: HubStores) -> None:
    one_line("the hub's client fails", lambda: push(hub_stores("webdataset"), f"{URL}/.git"), RemoteError)


def test_another_store_is_refused(
    hub: HubServer, hub_stores: HubStores, make_manifest: Callable[..., Manifest], write_store: Any, tmp_path: Path
) -> None:
    push(hub_stores("webdataset"))
    commit = hub.repos[REPO].branches["main"]
    message = one_line("push it to another data set or path", lambda: push(hub_stores("zarr")))
    for folder in (hub_stores("zarr"), hub_stores("webdataset")):
        assert StoreReader(folder).manifest.whole_hash[:12] in message
    assert "backend is webdataset" in message
    same = make_manifest(num_samples=5, shard_size=3, backend="webdataset")
    push(write_store(tmp_path / "one", same), f"{URL}/path")
    other = write_store(tmp_path / "other", same, quarantine=(1,))
    one_line("another dump with the same settings", lambda: push(other, f"{URL}/path"))
    part = write_store(tmp_path / "part", same, shards=[0])
    one_line("a shard that", lambda: push(part, f"{URL}/path"))
    hub.repos["org/other"] = Repo()
    hub.repos["org/other"].add("main", {"data.csv": hub.repos[REPO].commits[commit]["manifest.json"]}, "theirs")
    one_line("holds 'data.csv', which is not of store", lambda: push(part, "hf://datasets/org/other"))
    assert len(hub.repos["org/other"].commits) == 1


def test_an_unfinished_store_is_pushed_as_far_as_it_goes(
    hub: HubServer,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    tree_bytes: TreeBytes,
    tmp_path: Path,
) -> None:
    manifest = make_manifest(num_samples=7, shard_size=3, backend="webdataset")
    folder = write_store(tmp_path / "store", manifest, shards=[1])
    report = push(folder)
    assert (report.num_shards, report.planned_shards) == (1, 3)
    assert "**The store is unfinished**" in hub.repos[REPO].files()["README.md"].decode()
    write_store(folder, manifest)
    assert push(folder).shards == (0, 2)
    assert below(hub.repos[REPO]) == tree_bytes(folder) and verify_store(URL, deep=True).ok


@pytest.mark.parametrize(
    "kind, part",
    [
        *((500, part) for part in ("/storage/", "/commit/", "/preupload/", "/objects/batch", "/revision/", "/tree/")),
        *((kind, "/commit/") for kind in (429, "cut", "lost")),
        ("lost", "/storage/"),
    ],
)
def test_what_breaks_once_is_done_again(
    hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes, tmp_path: Path, kind: Any, part: str
) -> None:
    folder = hub_stores("webdataset")
    hub.repos[REPO] = Repo()
    hub.repos[REPO].add("main", {}, "initial commit")
    hub.break_with(kind, lambda asked: part in asked.path, times=1)
    push(folder)
    assert hub.faults[0][2] == 0 and below(hub.repos[REPO]) == tree_bytes(folder)
    assert_every_commit_is_sound(hub.repos[REPO], {4}, tmp_path)


def test_what_stays_broken_is_one_line_and_continues(
    hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes
) -> None:
    folder = hub_stores("webdataset")
    hub.break_with(500, lambda asked: "/commit/" in asked.path)
    one_line("the hub answers 500, 3 attempts; run the command again", lambda: push(folder), RemoteError)
    hub.heal()
    hub.seen.clear()
    push(folder)
    assert below(hub.repos[REPO]) == tree_bytes(folder) and sent_bytes(hub) == 0


def test_a_killed_push_sends_the_rest(
    hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes, tmp_path: Path, wait_until: Any
) -> None:
    """Killed in the middle of an upload; what had arrived is not sent again."""
    folder = hub_stores("webdataset")
    largest = sorted((len(data), path) for path, data in tree_bytes(folder).items())[-1]
    hub.break_with("hang", lambda asked: asked.method == "PUT" and asked.content_length == largest[0])
    command = [sys.executable, "-m", "alignkd.pipeline.cli", "shards", "push", str(folder), URL]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # files are sent in parallel: the largest may be reached before another has arrived
    reached = lambda: hub.faults[0][2] < 10**9 and hub.objects  # noqa: E731
    wait_until(lambda: reached() or process.poll() is not None, "the push reaches the largest file")
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.communicate()
    arrived = set(hub.objects)
    hub.heal()
    hub.seen.clear()
    push(folder)
    assert below(hub.repos[REPO]) == tree_bytes(folder) and verify_store(URL, deep=True).ok
    assert arrived and not any(oid in one.path for oid in arrived for one in hub.asked("PUT", "/storage/"))
    assert_every_commit_is_sound(hub.repos[REPO], {4}, tmp_path)


def test_two_pushes_at_the_same_time_do_not_mix(
    hub: HubServer, hub_stores: HubStores, make_manifest: Any, write_store: Any, tmp_path: Path
) -> None:
    """Another store arrives between the comparison and the commit."""
    other = write_store(tmp_path / "other", make_manifest(num_samples=3, shard_size=3))
    once: list[int] = []

    def interfere(asked: Any) -> bool:
        if "/commit/" in asked.path and not once:
            once.append(1)
            repo = hub.repos[REPO]
            files = {path.relative_to(other).as_posix(): path for path in other.rglob("*") if path.is_file()}
            blob = next(iter(repo.commits[repo.branches["main"]].values()))
            tree = {path: type(blob)(file.read_bytes(), False) for path, file in files.items()}
            repo.add("main", tree, "theirs")
        return False

    hub.break_with(500, interfere)
    one_line("push it to another data set or path", lambda: push(hub_stores("webdataset")))
    assert below(hub.repos[REPO])["manifest.json"] == (other / "manifest.json").read_bytes()


def test_who_may_not_push_is_told_why(
    hub: HubServer,
    hub_stores: HubStores,
    offline: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = hub_stores("webdataset")
    push(folder)
    one_line("the data set exists and is public; --private", lambda: push(folder, private=True))
    one_line("is not a branch", lambda: push(folder, f"{URL}@{hub.repos[REPO].branches['main']}"))
    one_line("licence is 'CC BY'", lambda: CardFacts(licence="CC BY"))
    one_line("is this the folder of a store?", lambda: push(tmp_path))
    hub.break_with(404, lambda asked: "/revision/" in asked.path)
    one_line("the hub answers 404; check the name, and HF_ENDPOINT", lambda: push(folder), RemoteError)
    hub.heal()
    offline(True)
    one_line("HF_HUB_OFFLINE is set; unset it to push", lambda: push(folder))
    offline(False)
    monkeypatch.setenv("HF_TOKEN", READER)
    one_line("the token may not do this", lambda: push(folder, "hf://datasets/org/new"), RemoteError)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.seen.clear()
    one_line("no token of the hub; `hf auth login`, or set HF_TOKEN to one with write access", lambda: push(folder))
    assert hub.seen == []


def test_damage_on_the_disk_is_not_pushed(
    hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(hub_stores("webdataset"), folder)
    tar = next(folder.glob("shards/*/*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    one_line("the disk returned other bytes", lambda: push(folder), CorruptStoreError)
    tar.write_bytes(tar.read_bytes()[:-1])
    one_line("nothing is pushed", lambda: push(folder), CorruptStoreError)
    assert "manifest.json" not in hub.repos[REPO].files()


def test_a_dry_run_changes_nothing(hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes) -> None:
    folder = hub_stores("webdataset")
    report = push(folder, dry_run=True)
    assert report.created and report.commit is None and report.shards == (0, 1) and hub.repos == {}
    in_folder = sum(map(len, tree_bytes(folder).values()))
    assert report.num_bytes == in_folder + len(report.card_text.encode())
    push(folder)
    commits = dict(hub.repos[REPO].commits)
    assert push(folder, dry_run=True).files == 0 and hub.repos[REPO].commits == commits
    assert {one.method for one in hub.seen[-3:]} == {"GET"}


def test_a_card_that_a_person_edited_is_kept(hub: HubServer, hub_stores: HubStores) -> None:
    folder = hub_stores("webdataset")
    push(folder)
    repo = hub.repos[REPO]
    made = repo.files()["README.md"]
    assert push(folder, facts=CardFacts(licence="mit")).card == "written"
    assert push(folder).card == "unchanged" and b"license: mit" in repo.files()["README.md"]
    tree = dict(repo.commits[repo.branches["main"]])
    edited = made.replace(b"# name", b"# My targets")
    tree["README.md"] = type(tree["README.md"])(edited, False)
    repo.add("main", tree, "edited")
    assert push(folder).card == "kept" and repo.files()["README.md"] == edited
    assert push(folder, replace_card=True).card == "written" and repo.files()["README.md"] == made


def test_the_command(hub: HubServer, hub_stores: HubStores, capsys: pytest.CaptureFixture[str]) -> None:
    from click.testing import CliRunner

    from alignkd.pipeline.commands.shards import shards

    folder, runner = str(hub_stores("webdataset")), CliRunner()
    command = ["push", folder, URL, "--revision", "v1", "--licence", "mit", "--json"]
    planned = json.loads(runner.invoke(shards, [*command, "--dry-run"]).stdout)
    done = runner.invoke(shards, command)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    for figure in ("files", "num_bytes", "shards", "card", "card_text"):
        assert planned[figure] == shown[figure], figure
    assert shown["target"] == f"{URL}@v1" and shown["commit"] == hub.repos[REPO].branches["v1"]
    again = runner.invoke(shards, ["push", folder, f"{URL}@v1"])
    assert again.stdout.startswith(f"nothing left to do: {URL}@v1 has all 2 shards, commit ")
    dry = runner.invoke(shards, ["push", folder, URL, "--dry-run", "--teacher", "org/teacher"])
    assert "would send 2 shards of 2" in dry.stdout and "The teacher is `org/teacher`." in dry.stdout
    assert "; card would be written, see below\n" in dry.stdout
    both = runner.invoke(shards, ["push", folder, f"{URL}@a", "--revision", "b"])
    assert both.exit_code == 2 and "give one of them" in both.output
    bucket = runner.invoke(shards, ["push", "s3://bucket/store", URL])
    assert bucket.exit_code == 1 and "only a store in a folder is pushed" in bucket.output
    listed = runner.invoke(shards, ["ls", f"{URL}@v1"])
    assert "2 of 2 shards, 4 records, 1 unusable" in listed.stdout


def test_paths_of_this_machine_are_not_published(
    hub: HubServer, hub_stores: HubStores, tree_bytes: TreeBytes, tmp_path: Path
) -> None:
    """The manifest of a dump has the folders of images and teacher; the same store is published without them."""
    folder = tmp_path / "store"
    shutil.copytree(hub_stores("zarr"), folder)
    manifest = StoreReader(folder).manifest
    read_from = ReadFrom(
        checkpoint="/home/ann/teacher", images=(ImageFolder(first_sample=0, folder="/home/ann/images"),)
    )
    (folder / "manifest.json").write_bytes(sealed_manifest(folder, manifest.changed(read_from=read_from)))
    assert b"/home/ann" in tree_bytes(folder)["manifest.json"]
    push(folder)
    published = below(hub.repos[REPO])
    assert not any(b"/home/ann" in data for data in published.values())
    assert list_store(URL).root_hash == list_store(folder).root_hash and verify_store(URL, deep=True).ok
    assert push(folder).files == 0

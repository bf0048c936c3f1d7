"""Reading LLaVA-style data: what is usable, what is named."""

import base64
import hashlib
import io
import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from alignkd.vlm.data.images import MissingImageError, image_hashes, open_image, read_image_bytes, read_images
from alignkd.vlm.data.json.stream import JsonEntries
from alignkd.vlm.data.open import load_samples, open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.inputs.sample_key import sample_key

GOOD = {"id": 7, "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nhi"}]}


def write(tmp_path: Path, text: str, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_json_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    entries = [GOOD, {"conversations": [{"from": "HUMAN", "value": "hi\u2028there"}]}]
    as_list = load_samples(write(tmp_path, json.dumps(entries)))
    as_lines = load_samples(
        write(tmp_path, "\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), "data.jsonl")
    )
    assert as_list == as_lines
    assert [(sample.id, sample.images, sample.problem) for sample in as_list] == [
        ("7", ("a.png",), None),
        ("#1", (), None),
    ]
    assert as_list[1].turns[0].speaker == "human"


def test_images_are_a_tuple_however_many_there_are(tmp_path: Path) -> None:
    entries = [{**GOOD, "image": image} for image in (["a.png", "b.png"], ["a.png"], "a.png", [], None)]
    samples = load_samples(write(tmp_path, json.dumps(entries)))
    assert [sample.images for sample in samples] == [("a.png", "b.png"), ("a.png",), ("a.png",), (), ()]
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    files = [read_images(tmp_path, sample.images) for sample in samples]
    assert files == [(b"a.png", b"b.png"), (b"a.png",), (b"a.png",), (), ()]
    hashes = [image_hashes(file) for file in files]
    first = hashlib.sha256(b"a.png").hexdigest()
    assert hashes == [(first, hashlib.sha256(b"b.png").hexdigest()), (first,), (first,), (), ()]
    conversations = samples[0].conversations()
    keys = {sample_key(conversations, shown, "v1") for shown in [*hashes, hashes[0][::-1]]}
    assert len(keys) == 4  # which images, and in which order
    with pytest.raises(MissingImageError, match=r"c\.png: image cannot be read"):
        read_images(tmp_path, ("a.png", "c.png"))


def test_samples_are_read_by_their_position(tmp_path: Path) -> None:
    entries = [{**GOOD, "id": "same", "extra": number} for number in range(5)]
    path = write(tmp_path, json.dumps(entries, indent=1), "data.json")
    file = open_data(DataSet(path=path))
    assert len(file) == 5 and file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file[index] for index in range(5)] == list(file) == load_samples(path)
    assert [sample.index for sample in file] == [0, 1, 2, 3, 4]  # ids may repeat, positions do not
    assert file[-1] == file[4] and file.entry(3) == entries[3]
    with pytest.raises(IndexError):
        file[5]
    assert pickle.loads(pickle.dumps(file))[2] == file[2]


def test_a_file_may_hold_pictures_and_be_read_as_its_user_says(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(stream, "PNG")
    messages = [{"role": "Kunde", "content": "q"}, {"role": "assistant", "content": "a"}]
    entries: list[dict[str, object]] = [{"messages": messages} for _ in range(3)]
    path = write(tmp_path, json.dumps(entries))
    assert not open_data(DataSet(path=path)).holds_images and open_data(DataSet(path=path))[0].problem is not None
    entries[1]["image"] = base64.b64encode(stream.getvalue()).decode()
    path = write(tmp_path, json.dumps(entries))
    data = DataSet(path=path, roles={"kunde": "human"}, system="be brief", images=tmp_path)
    file = pickle.loads(pickle.dumps(open_data(data)))
    assert file.holds_images and file[1].contents == (stream.getvalue(),) and file[1].folder == tmp_path
    assert [[turn.value for turn in sample.turns] for sample in file] == [
        ["be brief", "q", "a"],
        ["be brief", "<image>\nq", "a"],
        ["be brief", "q", "a"],
    ]


def test_reading_reports_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([GOOD] * 20))
    reported: list[tuple[int, int]] = []
    JsonEntries(path, window=100, progress=lambda done, total: reported.append((done, total)))
    size = path.stat().st_size
    assert len(reported) > size // 100 and reported == sorted(reported) and reported[-1] == (size, size)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("[{]", "data.json", r"data.json: broken JSON at line 1, column 3"),
        ('{"a": 1}\n{"a"', "data.jsonl", r"data.jsonl: broken JSON at line 2"),
        ('{"a": 1}', "data.json", r"a JSON object, expected a list"),
    ],
)
def test_broken_files_are_named_with_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_samples(write(tmp_path, text, name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: cannot be read \(No such file"):
        load_samples(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("text", "not a JSON object"),
        ({**GOOD, "conversations": []}, "empty conversation"),
        ({**GOOD, "conversations": [{"value": "hi"}]}, "turn 0"),
        ({**GOOD, "conversations": [{"from": "human", "value": 3}]}, "turn 0"),
        ({**GOOD, "image": ["a.png", 3]}, "expected a path, the bytes of an image, or a list"),
        ({**GOOD, "image": ""}, "expected a path, the bytes of an image, or a list"),
        ({**GOOD, "image": ["a.png", "b\0.png"]}, "'b\\x00.png', which cannot be a file name"),
        ({**GOOD, "image": "a\0.png"}, "cannot be a file name"),
        ({**GOOD, "image": "a\ud800.png"}, "cannot be a file name"),
        ({**GOOD, "conversations": [{"from": "human", "value": "half \ud83d"}]}, "turn 0 holds half a surrogate pair"),
    ],
)
def test_malformed_entries_are_kept_with_their_problem(tmp_path: Path, entry: object, problem: str) -> None:
    samples = load_samples(write(tmp_path, json.dumps([entry, GOOD])))
    assert samples[0].problem is not None and problem in samples[0].problem
    assert "\n" not in samples[0].problem and samples[0].problem.encode()
    assert samples[1].problem is None


def test_an_id_can_always_be_written_down(tmp_path: Path) -> None:
    ids = ["half \ud83d", "whole \U0001f680", 7, None]
    samples = load_samples(write(tmp_path, json.dumps([{**GOOD, "id": sample_id} for sample_id in ids])))
    assert [sample.id for sample in samples] == ["half \\ud83d", "whole \U0001f680", "7", "None"]
    assert all(sample.problem is None and sample.id.encode() for sample in samples)


def test_images_stay_inside_their_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_text("x")
    for outside in ("../secret", "sub/../../secret", str(tmp_path / "secret")):
        with pytest.raises(SampleError, match="leaves the image folder"):
            read_image_bytes(tmp_path / "images", outside)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"pixels")
    (tmp_path / "images" / "coco").symlink_to(tmp_path / "elsewhere")  # how large image sets are put in place
    assert read_image_bytes(tmp_path / "images", "coco/a.jpg") == b"pixels"
    for link in ("a.png", "b.png"):
        (tmp_path / "images" / link).symlink_to("b.png")
    (tmp_path / "images" / "folder.png").mkdir()
    for name in ("none.png", "a.png", "folder.png", "x" * 300):
        for reads in (read_image_bytes, open_image):
            with pytest.raises(MissingImageError, match=rf"{name}: image cannot be read \(.*\); restore the file"):
                reads(tmp_path / "images", name)


def test_the_key_follows_all_that_decides_the_input() -> None:
    conversation = [{"from": "human", "value": "hi"}]
    key = sample_key(conversation, ["ab"], "v1")
    others = [
        sample_key([{"from": "human", "value": "ho"}], ["ab"], "v1"),
        sample_key(conversation, ["cd"], "v1"),
        sample_key(conversation, [], "v1"),
        sample_key(conversation, ["ab"], "plain"),
    ]
    assert len({key, *others}) == 5 and key == sample_key(list(conversation), ["ab"], "v1")


@pytest.mark.parametrize(("hashes", "spelled"), [([], None), (["ab"], "ab"), (["ab", "cd"], ["ab", "cd"])])
def test_the_key_is_that_of_stores_that_exist(hashes: list[str], spelled: object) -> None:
    """One hash is written as a text, several as a list: a store's keys must not change with how they are held."""
    conversation = [{"from": "human", "value": "hé"}]
    written = json.dumps([conversation, spelled, "v1:1"], ensure_ascii=False, sort_keys=True)
    assert sample_key(conversation, hashes, "v1:1") == hashlib.sha256(written.encode()).hexdigest()

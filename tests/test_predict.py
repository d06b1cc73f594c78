"""The command from outside."""

import json
import os
import re
import types

import drawn_digits
import numpy as np
import pytest
from PIL import Image

from lenet_jax import data, predict
from lenet_jax.data.registry import INFO
from lenet_jax.pictures import read as pictures
from lenet_jax.run import reading, trained
from lenet_jax.run.measure import predict_logits

ADVICE = f"note: {INFO['digits'].advice}"


@pytest.fixture
def folder(tmp_path):
    """Ten pictures: the first test image of each digit, in a folder with a file that is none."""
    dataset = data.load("digits")
    for digit in range(10):
        image = dataset.test.images[np.flatnonzero(dataset.test.labels == digit)[0]]
        Image.fromarray(image[:, :, 0]).save(tmp_path / f"{digit}.PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def ask(capsys, *argv: object) -> tuple[list[str], list[str], int]:
    """Its lines on stdout and stderr, but for the advice on the digits, and its exit code."""
    code = 0
    try:
        predict.main(["predict", *map(str, argv)])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    err = said.err.splitlines()
    return said.out.splitlines(), err[err[:1] == [ADVICE] :], code


def test_the_probabilities_are_the_networks(tiny_run, folder, capsys):
    out, err, code = ask(capsys, f"--workdir={tiny_run}", "--json", "--nocenter", folder)
    answers = [json.loads(line) for line in out]
    run, test = trained.load(tiny_run), data.load("digits").test
    images = [test.images[np.flatnonzero(test.labels == i)[0]] for i in range(10)]
    logits = np.asarray(predict_logits(run, np.stack(images)), np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert (err, code) == ([], 0)
    assert [answer["file"] for answer in answers] == [str(folder / f"{i}.PNG") for i in range(10)]
    for answer, expected in zip(answers, probs, strict=True):
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4)
        order = expected.argsort()[::-1]
        assert [answer["prediction"], answer["runner_up"]] == order[:2].tolist()
        assert answer["probability"] == max(answer["probabilities"])
        assert answer["runner_up_probability"] == sorted(answer["probabilities"])[-2]


def test_a_line_for_a_person_has_file_digit_and_runner_up(tiny_run, folder, capsys):
    (as_json,), _, _ = ask(capsys, f"--workdir={tiny_run}", "--json", folder / "7.PNG")
    (line,), _, code = ask(capsys, folder / "7.PNG", f"--workdir={tiny_run}")
    found = json.loads(as_json)
    assert line.replace(", unsure", "") == (
        f"{folder / '7.PNG'}: {found['prediction']} ({found['probability']:.1%}), "
        f"else {found['runner_up']} ({found['runner_up_probability']:.1%})"
    )
    assert code == 0


def test_what_cannot_be_answered_is_named_and_the_others_are_answered(tiny_run, folder, capsys):
    (folder / "void").mkdir()
    Image.new("L", (40, 40), 200).save(folder / "empty.png")
    nan = np.full((40, 40), np.nan, np.float32)
    Image.fromarray(nan).save(folder / "nan.tif")
    bad = [folder / name for name in ("notes.txt", "empty.png", "nan.tif", "missing.png", "void")]
    four, three = folder / "4.PNG", folder / "3.PNG"
    asked = [bad[0], four, *bad[1:3], three, *bad[3:], four]  # one of them twice
    out, err, code = ask(capsys, f"--workdir={tiny_run}", *asked)
    assert code == 1
    assert [line.split(": ")[0] for line in out] == list(map(str, [four, three, four]))
    assert [line.split(": ")[1] for line in err] == list(map(str, bad))
    out, again, code = ask(capsys, f"--workdir={tiny_run}", "--json", *asked)
    assert (again, code) == (err, 1)
    answers = [json.loads(line) for line in out]
    assert [answer["file"] for answer in answers] == list(map(str, asked))
    assert [answer["file"] for answer in answers if "error" in answer] == list(map(str, bad))


def three_digits(path):
    """4, 0 and 7 side by side."""
    row = [drawn_digits.printed(digit, "DejaVuSans", size=100, side=160) for digit in (4, 0, 7)]
    Image.fromarray(np.concatenate(row, axis=1)).resize((1440, 480)).save(path)
    return path


def test_of_several_digits_all_are_answered_from_left_to_right(tiny_run, tmp_path, capsys):
    file = three_digits(tmp_path / "three.png")
    out, err, code = ask(capsys, f"--workdir={tiny_run}", "--json", file)
    answers = [json.loads(line) for line in out]
    assert (len(answers), err, code) == (3, [], 0)
    for index, answer in enumerate(answers):
        left, top, right, bottom = answer["box"]
        assert 480 * index < left < right < 480 * (index + 1)
        assert 0 < top < bottom < 480
    (line,), _, _ = ask(capsys, f"--workdir={tiny_run}", file)
    assert re.sub(r" \(.*?\)", "", line) == f"{file}: 3 digits: " + " ".join(
        answer["class"] for answer in answers
    )
    shares = re.findall(r"\((\d+\.\d%)", line)
    assert shares == [f"{answer['probability']:.1%}" for answer in answers]


def answered(first: str, probability: float, second: str, its_probability: float) -> dict:
    """A `prediction`, as far as a line shows it."""
    answer = {"class": first, "probability": probability}
    return answer | {"runner_up_class": second, "runner_up_probability": its_probability}


def test_below_80_percent_it_is_unsure_and_names_the_runner_up():
    sure, unsure = answered("3", 0.8, "8", 0.1), answered("1", 0.796, "7", 0.2)
    assert predict.format_line([sure], "a.png") == "a.png: 3 (80.0%), else 8 (10.0%)"
    assert predict.format_line([unsure], "a.png") == "a.png: 1 (79.6%, unsure), else 7 (20.0%)"
    assert predict.format_line([sure, unsure, sure], "a.png") == (
        "a.png: 3 digits: 3 (80.0%) 1 (79.6%, unsure: else 7, 20.0%) 3 (80.0%)"
    )


def test_a_doubt_about_what_is_read_is_a_note(capsys):
    found = [types.SimpleNamespace(doubt="touches the picture's border")] * 2
    page = types.SimpleNamespace(
        name="a.png", answers=[answered("3", 0.9, "8", 0.1)], found=found, note=""
    )
    notes = []
    predict._print(page, False, notes.append)
    assert notes == ["note: a.png: a character touches the picture's border"]


def test_without_a_run_the_packages_network_reads_and_says_so(tmp_path, capsys):
    pictures = [tmp_path / f"{digit}.png" for digit in (2, 3, 5)]
    for file in pictures:
        Image.fromarray(drawn_digits.printed(file.stem, "DejaVuSans")).save(file)
    out, err, code = ask(capsys, *pictures)
    assert [line.split(": ")[1][0] for line in out] == ["2", "3", "5"]
    assert (len(err), code) == (1, 0)
    assert err[0].startswith("note: this is the package's own network, trained on mnist")


def test_a_network_of_the_digits_says_what_reads_better(tiny_run, folder, capsys):
    predict.main(["predict", f"--workdir={tiny_run}", str(folder / "7.PNG")])
    assert capsys.readouterr().err == f"{ADVICE}\n"
    assert "predict without --workdir" in ADVICE


def test_output_has_what_the_network_saw(tiny_run, tmp_path, capsys):
    three = three_digits(tmp_path / "three.png")
    one = tmp_path / "one.png"
    Image.fromarray(drawn_digits.printed(5, "DejaVuSans")).save(one)
    folder = tmp_path / "new" / "seen"
    two = tmp_path / "two.png"
    Image.open(three).crop((0, 0, 960, 480)).save(two)
    out, _, code = ask(capsys, f"--workdir={tiny_run}", f"--output={folder}", one, three, two)
    assert (len(out), code) == (3, 0)
    names = ["001-one", "002-three-1", "002-three-2", "002-three-3", "003-two-1", "003-two-2"]
    assert sorted(file.stem for file in folder.iterdir()) == names
    seen = np.asarray(Image.open(folder / "001-one.png"))
    np.testing.assert_array_equal(seen, reading.prepare(one, trained.load(tiny_run))[..., 0])
    out, err, code = ask(capsys, f"--workdir={tiny_run}", f"--output={one}/seen", one)
    assert (out, len(err), code) == ([], 1, 1)
    assert err[0].endswith("; name another folder with --output")


def test_ctrl_c_leaves_what_is_answered_and_is_one_line_and_130(
    tiny_run, folder, capsys, monkeypatch
):
    read_pages = pictures.read_pages

    def interrupt(path):
        if path.name == "3.PNG":
            raise KeyboardInterrupt
        return read_pages(path)

    monkeypatch.setattr(pictures, "read_pages", interrupt)
    out, err, code = ask(capsys, f"--workdir={tiny_run}", folder)
    assert [line.split(": ")[0] for line in out] == [str(folder / f"{i}.PNG") for i in range(3)]
    assert (err, code) == (["error: stopped by Ctrl-C after 3 pictures"], 130)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_answer_is_printed_before_the_next_picture_is_read(
    flags, tiny_run, folder, capsys, monkeypatch
):
    """Also where stdout is a file: each line is written at once."""
    printed, read_pages = [], pictures.read_pages

    def look(path):
        printed.append(len(capsys.readouterr().out.splitlines()))
        return read_pages(path)

    monkeypatch.setattr(pictures, "read_pages", look)
    ask(capsys, f"--workdir={tiny_run}", *flags, folder)
    assert printed == [0] + 9 * [1]


def test_each_page_of_a_tiff_is_answered(tiny_run, folder, tmp_path, capsys):
    pages = [Image.open(folder / f"{digit}.PNG") for digit in (4, 0, 7)]
    blank = Image.new("L", (32, 32), 0)
    file = tmp_path / "scan.tif"
    pages[0].save(file, save_all=True, append_images=[pages[1], blank, pages[2]])
    out, err, code = ask(capsys, f"--workdir={tiny_run}", f"--output={tmp_path / 'seen'}", file)
    assert [line.split(": ")[0] for line in out] == [f"{file}, page {i}" for i in (1, 2, 4)]
    assert err == [f"error: {file}, page 3: is empty: nothing stands out from the background"]
    assert code == 1
    names = sorted(seen.name for seen in (tmp_path / "seen").iterdir())
    assert names == ["001-scan-page2.png", "001-scan-page4.png", "001-scan.png"]
    as_json, _, _ = ask(capsys, f"--workdir={tiny_run}", "--json", file)
    answers = [json.loads(line) for line in as_json]
    assert [answer["page"] for answer in answers] == [1, 2, 3, 4]
    alone, _, _ = ask(capsys, f"--workdir={tiny_run}", folder / "0.PNG")
    assert out[1].split(": ")[1] == alone[0].split(": ")[1]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_with_ink_is_answered(
    suffix, tiny_run, folder, tmp_path, capsys
):
    digit = Image.open(folder / "7.PNG").resize((96, 96)).convert("RGB")
    frames = [Image.new("RGB", (96, 96)), digit, Image.open(folder / "4.PNG").resize((96, 96))]
    file = tmp_path / f"film{suffix}"
    frames[0].save(file, save_all=True, append_images=[each.convert("RGB") for each in frames[1:]])
    out, err, code = ask(capsys, f"--workdir={tiny_run}", file)
    digit.save(tmp_path / "alone.png")
    alone, _, _ = ask(capsys, f"--workdir={tiny_run}", tmp_path / "alone.png")
    assert out[0].split(": ")[1].split()[0] == alone[0].split(": ")[1].split()[0]
    assert err[0] == f"note: {file}: frame 2 of 3 is the first with ink"
    assert (len(out), code) == (1, 0)


def test_an_animation_without_ink_is_one_line(tiny_run, tmp_path, capsys):
    file = tmp_path / "blank.gif"
    blank = [Image.new("L", (40, 40), 7), Image.new("L", (40, 40), 9)]
    blank[0].save(file, save_all=True, append_images=blank[1:])
    out, err, code = ask(capsys, f"--workdir={tiny_run}", file)
    assert (out, len(err), code) == ([], 1, 1)
    assert err[0].startswith(f"error: {file}: is empty")


def test_a_tiff_that_is_cut_off_is_answered_as_far_as_it_goes(tiny_run, folder, tmp_path, capsys):
    file = tmp_path / "scan.tif"
    pages = [Image.open(folder / f"{digit}.PNG") for digit in (4, 0)]
    pages[0].save(file, save_all=True, append_images=pages[1:])
    os.truncate(file, file.stat().st_size - 200)
    out, err, code = ask(capsys, f"--workdir={tiny_run}", file, folder / "7.PNG")
    assert [line.split(": ")[0] for line in out][-1] == str(folder / "7.PNG")
    assert (len(err), code) == (1, 1)


def test_whatever_is_raised_for_a_picture_is_its_line(tiny_run, folder, capsys, monkeypatch):
    def fail(*args):
        raise IndexError("of the finder")

    monkeypatch.setattr(reading.frame, "find", fail)
    out, err, code = ask(capsys, f"--workdir={tiny_run}", folder / "1.PNG", folder / "2.PNG")
    assert (out, code) == ([], 1)
    assert err == [f"error: {folder / f'{i}.PNG'}: of the finder" for i in (1, 2)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_named(tiny_run, folder, capsys):
    folder.chmod(0)
    _, err, code = ask(capsys, f"--workdir={tiny_run}", folder)
    folder.chmod(0o700)
    assert (len(err), code) == (1, 1)
    assert "cannot be read" in err[0]


def test_a_name_of_any_bytes_is_printed_on_one_line(tiny_run, folder, capsys):
    strange = os.fsencode(folder) + b"/a\n\xff.png"
    os.link(folder / "5.PNG", strange)
    out, err, code = ask(capsys, f"--workdir={tiny_run}", os.fsdecode(strange))
    assert (len(out), err, code) == (1, [], 0)
    assert r"a\n\udcff.png: " in out[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no picture is given"),
        (["a.png", "--workdir=no/such/run"], "--workdir=no/such/run: there is no such folder"),
        (["a.png", "--centre"], "Unknown command line flag 'centre'"),
    ],
)
def test_a_wrong_question_is_one_line_and_code_2(argv, words, capsys):
    out, err, code = ask(capsys, *argv)
    assert (out, len(err), code) == ([], 1, 2)
    assert err[0].startswith(f"error: {words}")

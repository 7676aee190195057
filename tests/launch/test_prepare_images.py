"""The verbs images, verify and inspect as a person uses them: what they print, and their exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.prepare import main
from tests.data.photos import jpeg, write_classes, write_tar


def test_from_pictures_to_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "train", 4)
    (tmp_path / "train" / "n01440764" / "cut.JPEG").write_bytes(jpeg()[:700])
    write_tar(tmp_path / "val.tar", {"ILSVRC2012_val_00000001.JPEG": jpeg(seed=7)})
    (tmp_path / "labels.txt").write_text("n01443537\n")
    out = str(tmp_path / "mini")
    command = ["images", str(tmp_path / "train"), "--out", out, "--workers", "1", "--shard-mb", "0.01"]
    command += ["--validation", str(tmp_path / "val.tar"), "--validation-labels", str(tmp_path / "labels.txt")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1 pictures left out: truncated (first: n01440764/cut.JPEG)" in printed
    assert f"every picture left out stands in {out}/train/left-out.jsonl" in printed
    assert f"{out}/train: 12 pictures in " in printed and "validation: 1 pictures in 1 shard" in printed
    assert main(command) == 0
    assert "is prepared already; delete it to prepare it anew" in capsys.readouterr().out
    assert main(["verify", out]) == 0
    assert main(["inspect", out]) == 0
    printed = capsys.readouterr().out
    assert "contact sheet: " in printed and printed.splitlines()[-1].startswith("next: python launch/prepare.py ")
    assert (tmp_path / "mini" / "contact-sheet-train.png").stat().st_size > 1000
    assert main(["inspect", out, "--split", "validation", "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert "n01443537" in capsys.readouterr().out and (tmp_path / "sheet.png").exists()
    shard = tmp_path / "mini" / "train" / "mini-train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert main(["verify", out]) == 3
    assert f"{shard}: is not what the manifest lists (sha256)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation", "x", "--validation-share", "0.1"], "leave it out where --validation is given"),
        (["--validation-labels", "x"], "--validation-labels needs --validation"),
        (["--validation-share", "1.0"], "--validation-share 1.0 must lie between 0 and 1"),
        (["--validation-share", "0"], "--validation-share 0.0 must lie between 0 and 1"),
        (["--workers", "0"], "--workers 0 must be above 0"),
        (["--shard-mb", "-1"], "--shard-mb -1.0 must be above 0"),
    ],
)
def test_wrong_arguments_end_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["images", "train", "--out", "out", *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_wrong_input_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", str(tmp_path / "missing"), "--out", str(tmp_path / "out")]) == 3
    assert "data error: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_interruption_says_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_classes(tmp_path / "train", 4)
    monkeypatch.setattr("nt_pretrain.data.preparation.prepare_images.write_planned", interrupt)
    command = ["images", str(tmp_path / "train"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*command, "--validation-share", "0.3"]) == 130
    assert "what is finished is kept in " + str(tmp_path / "out.partial") in capsys.readouterr().err

"""FAULTS.md, row 51: a fold that is missing, and predictions that cannot be read, when the report is made."""
import shutil

from tests.faults.processes import run


def test_row_51_the_report_names_what_it_lacks(tiny_trained, tmp_path):
    """Fold 1 is not trained; of another method's predictions one is cut and one is not there."""
    tiny, others = tiny_trained.copy(tmp_path / "w"), tmp_path / "others"
    others.mkdir()
    cut = others / "t2.nii.gz"
    shutil.copy(tiny.raw / "labelsTr" / "t2.nii.gz", cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    code, printed = run(tmp_path / "printed", "crossval", tiny.args("-d", 901, "-device", "cpu", "--compare", f"other={others}"))
    assert code == 0, printed
    for name in ("report.md", "report.html"):
        text = (tiny.folder.crossval / name).read_text()
        assert "incomplete: fold 1 of 2 not trained; the tables hold the held-out cases of fold 0 only" in text
        assert "others/t2.nii.gz: cannot be read" in text and "others has no prediction of t5" in text


def test_row_51_a_held_out_case_that_cannot_be_read(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    image = tiny.raw / "imagesTr" / "t5_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-100])
    code, printed = run(tmp_path / "printed", "crossval", tiny.args("-d", 901, "-device", "cpu"))
    assert code == 3 and "1 held-out cases failed, the others are in the report: " in printed
    assert "t5_0000.nii.gz: cannot be read" in printed
    assert "incomplete: t5 could not be predicted or scored: " in (tiny.folder.crossval / "report.md").read_text()

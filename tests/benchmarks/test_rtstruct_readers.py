"""Other projects' readers see the masks that were written, and the script says where one does not."""
import subprocess

import pandas as pd
import pytest


@pytest.mark.parametrize("ml, rt_utils, low", [(1.0, 0.99, False), (1.0, 0.989, True), (0.9, 0.97, False), (0.9, 0.969, True)])
def test_a_structure_below_the_limit_is_named_and_ends_the_script_with_1(benchmark_of, monkeypatch, capsys, ml, rt_utils, low):
    readers = benchmark_of("rtstruct_readers")
    table = pd.DataFrame({"ml": [100.0, ml], "of it in contours": 1.0, "ours": 1.0, "rt-utils": [1.0, rt_utils], "dcmrtstruct2nii": 1.0},
                         index=["Large", "Small"])  # fmt: skip
    monkeypatch.setattr(readers, "compare", lambda series, environments: table)
    assert readers.main(["series", "environments"]) == low
    assert ("0.97 under 1 ml: Small" in capsys.readouterr().out) == low


def test_on_a_real_ct(slow, real_data, benchmark_of, tmp_path):
    readers = benchmark_of("rtstruct_readers")
    for reader, packages in readers.PACKAGES.items():
        try:
            readers.environment(tmp_path / reader, packages)
        except subprocess.CalledProcessError as e:
            pytest.skip(f"{reader} cannot be installed ({e}); this test needs a package index")
    table = readers.compare(real_data / "dicom" / "head_neck_ct", tmp_path)
    assert len(table) == 8 and readers.too_low(table) == []

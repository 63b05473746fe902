from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcondense.data.sites import load_sites, site_names
from fedcondense.errors import DataError, SettingError


def write(folder: Path, count: int, value: int, size: int = 8, mode: str = "L") -> None:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(np.full((size, size), value, np.uint8)).convert(mode).save(folder / f"{k}.png")


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    write(tmp_path / "north" / "oak", 10, 10)
    write(tmp_path / "north" / "elm", 10, 20)
    write(tmp_path / "south" / "train" / "elm", 7, 30)
    write(tmp_path / "south" / "train" / "ash", 1, 40)
    write(tmp_path / "south" / "test" / "elm", 4, 50)
    return [f"folder:{tmp_path / name}" for name in ("north", "south")]


class TestNames:
    def test_a_site_is_called_as_its_folder_or_as_one_says(self) -> None:
        names = site_names(
            ["folder:/data/north", "npz:/data/a/b.npz", "digits", "east=folder:/x y/train", "folder:/x y"]
        )
        assert list(names) == ["north", "b", "digits", "east", "x-y"]
        assert names["east"] == "folder:/x y/train"

    def test_two_of_one_name_are_refused_with_a_way_out(self) -> None:
        with pytest.raises(SettingError, match=r"two sites are called 'train'; .*train-1=folder:a/train"):
            site_names(["folder:a/train", "folder:b/train"])

    def test_one_folder_under_two_names_is_refused(self) -> None:
        with pytest.raises(SettingError, match=r"a and east are one and the same, folder:x/\.\./a; name each site's"):
            site_names(["folder:a", "east=folder:x/../a"])

    def test_sites_of_one_class_in_all_are_refused(self, tmp_path: Path) -> None:
        for site in ("north", "south"):
            write(tmp_path / site / "ash", 6, 50)
        with pytest.raises(DataError, match="all sites have one class, 'ash'; needed: two"):
            load_sites([f"folder:{tmp_path / site}" for site in ("north", "south")])


class TestLoadSites:
    def test_every_record_is_used_and_classes_match_by_name(self, sites: list[str]) -> None:
        """Of the north, which has no test part, a fifth of each class is for testing; of the south its own part is."""
        (train, test), held = load_sites(sites)
        assert train.spec.classes == ("ash", "elm", "oak")
        assert held.names == ("north", "south")
        assert held.counts.tolist() == [[0, 8, 8], [1, 7, 0]]
        assert test.counts.tolist() == [0, 6, 2]
        south = train.subset(held[1])
        assert sorted(south.images[:, 0, 0, 0].tolist()) == [30] * 7 + [40]

    def test_the_division_says_what_each_site_holds(self, sites: list[str]) -> None:
        _, held = load_sites(sites)
        assert held.to_dict()["settings"] == {"sites": dict(zip(held.names, sites, strict=True))}

    def test_what_cannot_be_read_is_named_with_its_site(self, sites: list[str], tmp_path: Path) -> None:
        (tmp_path / "north" / "oak" / "1.png").write_bytes(b"no image")
        (tmp_path / "south" / "test" / "elm" / "0.png").write_bytes(b"no image")
        (train, _), _ = load_sites(sites, skip_broken=True)
        assert train.broken == ("north/oak/1.png", "south/test/elm/0.png")

    def test_grey_sites_become_coloured_beside_coloured_ones(self, sites: list[str], tmp_path: Path) -> None:
        write(tmp_path / "east" / "oak", 5, 60, mode="RGB")
        (train, _), _ = load_sites([*sites, f"folder:{tmp_path / 'east'}"])
        assert train.spec.shape == (3, 8, 8)

    def test_sizes_that_differ_need_one(self, sites: list[str], tmp_path: Path) -> None:
        write(tmp_path / "east" / "oak", 5, 60, size=200)
        large = [*sites, f"folder:{tmp_path / 'east'}"]
        with pytest.raises(DataError, match=r"200x200; needed: 8 to 128 pixels a side, by --size 64"):
            load_sites(large)
        assert load_sites(large, size=16)[0].train.spec.shape == (1, 16, 16)
        write(tmp_path / "west" / "oak", 5, 60, size=9)
        with pytest.raises(DataError, match=r"different sizes \(north: 8x8, south: 8x8, west: 9x9\); .*--size"):
            load_sites([*sites, f"folder:{tmp_path / 'west'}"])

    def test_classes_that_differ_by_spelling_alone_are_refused(self, sites: list[str], tmp_path: Path) -> None:
        write(tmp_path / "east" / "Oak", 5, 60)
        with pytest.raises(DataError, match=r"'Oak' and 'oak', which differ by case"):
            load_sites([*sites, f"folder:{tmp_path / 'east'}"])

    def test_one_class_and_one_image_are_a_site(self, sites: list[str], tmp_path: Path) -> None:
        write(tmp_path / "east" / "ash", 1, 60)
        _, held = load_sites([*sites, f"folder:{tmp_path / 'east'}"])
        assert held.counts[2].tolist() == [1, 0, 0]

    def test_a_site_without_classes_is_named(self, sites: list[str], tmp_path: Path) -> None:
        (tmp_path / "east").mkdir()
        with pytest.raises(DataError, match="east"):
            load_sites([*sites, f"folder:{tmp_path / 'east'}"])

    def test_nothing_to_test_on_is_said(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write(tmp_path / name / "oak", 3, 60)
        with pytest.raises(DataError, match="nothing is left for testing"):
            load_sites([f"folder:{tmp_path / name}" for name in ("a", "b")])

"""Write a folder of photos as people have them: two classes, files of different sizes and kinds.

python .ci/photos.py FOLDER

They are cats and dogs of CIFAR-10 where a folder of it is below NTK_DATA, else scanned digits.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from lib.data import root

NUMBER = 50  # of each class


def pictures(name: str, digit: int) -> list[Image.Image]:
    files = sorted((root() / "cifar10-subset" / "train" / name).glob("*.*"))[:NUMBER]
    if files:
        return [Image.open(file).convert("RGB") for file in files]
    digits = load_digits()
    grey = np.uint8(255 / 16 * digits.images[digits.target == digit][:NUMBER])
    return [Image.fromarray(image).convert("RGB") for image in grey]


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, digit in (("cat", 3), ("dog", 8)):
        (folder / f"{name}s").mkdir(parents=True, exist_ok=True)
        for k, picture in enumerate(pictures(name, digit)):
            picture = picture.resize(tuple(map(int, rng.integers(40, 120, 2))), Image.BICUBIC)
            picture = picture.convert(("RGB", "RGB", "L")[k % 3])
            picture.save(folder / f"{name}s" / f"photo {k}{('.jpg', '.png', '.JPEG')[k % 3]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
